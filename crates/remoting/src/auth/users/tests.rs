use proptest::prelude::*;

use super::*;

fn user(name: &str, version: u64) -> v1::User {
    let secret = Some(v1::Secret { text: "a long secret".into() });
    v1::User { name: name.into(), secret, version, ..Default::default() }
}

fn request(name: &str, change: Change) -> v1::ChangeUserRequest {
    v1::ChangeUserRequest { name: name.into(), change: Some(change) }
}

fn secret(text: &str) -> Option<v1::Secret> {
    Some(v1::Secret { text: text.into() })
}

/// Makes the change as a door does.
fn change(users: &Users, name: &str, change: Change) -> Result<v1::User, Rejection> {
    let (user, _) = users.changed(request(name, change), 1000)?;
    users.merge([user.clone()]);
    Ok(user)
}

#[test]
fn a_secret_is_never_printed() {
    let user = user("a", 1);
    let update = v1::Users { users: vec![user.clone()] };
    let users = Users::default();
    users.merge([user.clone()]);
    for text in [format!("{user:?}"), format!("{update:#?}"), format!("{users:?}")] {
        assert!(!text.contains("long secret"), "{text}");
    }
    assert_eq!(users.list("")[0].secret, None);
}

#[test]
fn a_user_is_made_changed_and_deleted_and_does_not_come_back() {
    let users = Users::default();
    let new = || Change::Create(v1::NewUser { secret: secret("12345678"), ..Default::default() });
    let made = change(&users, "a", new()).expect("made");
    assert!(change(&users, "a", new()).is_err(), "there is one");
    assert!(users.snapshot().get("a").is_some());
    let off = v1::UserSettings { disabled: Some(true), ..Default::default() };
    let disabled = change(&users, "a", Change::Update(off)).expect("disabled");
    assert!(users.snapshot().get("a").is_none() && disabled.version > made.version);
    assert_eq!(disabled.secret, made.secret);
    let gone = change(&users, "a", Change::Delete(true)).expect("deleted");
    assert_eq!((gone.secret, gone.policies.len()), (None, 0));
    users.merge([made, disabled]);
    assert!(users.list("").is_empty());
    assert!(matches!(change(&users, "a", Change::Delete(true)), Err(Rejection::UserNotFound { .. })));
    let again = change(&users, "a", new()).expect("a name may be used again");
    assert!(again.version > gone.version && again.policies.is_empty());
}

#[test]
fn a_policy_takes_the_place_of_that_of_its_resource() {
    let users = Users::default();
    users.merge([user("a", 1)]);
    let policy = |resource: &str, action: &str| v1::Policy {
        resource: resource.into(),
        actions: vec![action.into()],
        decision: v1::Decision::Allow.into(),
        ..Default::default()
    };
    let put = |policies| Change::PutPolicies(v1::Policies { policies });
    change(&users, "a", put(vec![policy("Topic:b", "Pub"), policy("Topic:a", "Pub")])).expect("put");
    let changed = change(&users, "a", put(vec![policy("Topic:a", "Sub")])).expect("put");
    assert_eq!(changed.policies, [policy("Topic:a", "Sub"), policy("Topic:b", "Pub")]);
    assert!(change(&users, "a", put(vec![policy("Topic", "Sub")])).is_err());
    assert!(change(&users, "a", Change::DeletePolicy("Topic:c".into())).is_err());
    let left = change(&users, "a", Change::DeletePolicy("Topic:a".into())).expect("deleted");
    assert_eq!(left.policies, [policy("Topic:b", "Pub")]);
    assert!(change(&users, "a", Change::DeletePolicies(true)).expect("deleted").policies.is_empty());
}

#[test]
fn names_and_secrets_have_limits_that_are_named() {
    let users = Users::default();
    let new = |text: &str| Change::Create(v1::NewUser { secret: secret(text), ..Default::default() });
    for name in ["", "a/b", "a,b", "a b", "ä", &"a".repeat(65)] {
        let refused = change(&users, name, new("12345678")).expect_err(name).to_string();
        assert!(refused.contains("a-z"), "{refused}");
    }
    for text in ["", "1234567", &"1".repeat(257)] {
        let refused = change(&users, "a", new(text)).expect_err(text).to_string();
        assert!(refused.contains("8 to 256"), "{refused}");
    }
}

#[test]
fn a_configured_user_does_not_replace_what_was_stored() {
    let users = Users::default();
    users.configure("root", "first secret");
    users.configure("root", "other secret");
    assert_eq!(users.record("root").and_then(|root| root.secret), secret("first secret"));
    assert!(users.snapshot().get("root").is_some_and(|root| root.is_super));
    users.merge([user("root", 2)]);
    assert!(users.snapshot().get("root").is_some_and(|root| !root.is_super));
}

#[test]
fn deleted_users_are_remembered_up_to_a_limit() {
    let users = Users::default();
    let gone = |n: u64| v1::User { name: n.to_string(), version: n, deleted: true, ..Default::default() };
    users.merge((1..=DELETED_MAX as u64 + 5).map(gone));
    assert_eq!(users.since(0).0.len(), DELETED_MAX);
    assert!(users.record("5").is_none() && users.record("6").is_some());
}

#[test]
fn whoever_asks_gets_what_changed_since() {
    let users = Users::default();
    users.merge([user("a", 1), user("b", 1)]);
    let (all, last) = users.since(0);
    assert_eq!(all.len(), 2);
    users.merge([user("a", 1)]);
    assert_eq!(users.since(last), (vec![], last), "nothing is new of it");
    users.merge([user("b", 2)]);
    assert_eq!(users.since(last).0, [user("b", 2)]);
}

proptest! {
    /// Nodes that hear the same in different orders, some of it twice, know the same.
    #[test]
    fn the_order_in_which_nodes_hear_does_not_matter(
        records in prop::collection::vec((0..3_u8, 1..4_u64, any::<bool>(), any::<bool>()), 0..12),
        seed in any::<u64>(),
    ) {
        let record = |(name, version, disabled, deleted): (u8, u64, bool, bool)| {
            v1::User { disabled, deleted, ..user(&name.to_string(), version) }
        };
        let records: Vec<v1::User> = records.into_iter().map(record).collect();
        let (one, other) = (Users::default(), Users::default());
        one.merge(records.clone());
        let mut order: Vec<usize> = (0..records.len()).chain(0..records.len()).collect();
        order.sort_by_key(|&at| (at as u64).wrapping_add(1).wrapping_mul(seed | 1));
        for at in order {
            other.merge([records[at].clone()]);
        }
        prop_assert_eq!(one.list(""), other.list(""));
        let mut merged = BTreeMap::new();
        records.into_iter().for_each(|record| merge_into(&mut merged, record));
        let known: Vec<v1::User> = merged.into_values().filter(|user| !user.deleted).collect();
        let listed: Vec<v1::User> = known.into_iter().map(|user| v1::User { secret: None, ..user }).collect();
        prop_assert_eq!(one.list(""), listed);
    }
}
