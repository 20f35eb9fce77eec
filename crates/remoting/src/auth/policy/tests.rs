//! Cases, and a comparison with a model that asks all policies one by one.

use proptest::prelude::*;

use super::*;

fn policy(resource: &str, actions: &[&str], sources: &[&str], decision: v1::Decision) -> v1::Policy {
    let texts = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect();
    v1::Policy {
        resource: resource.to_owned(),
        actions: texts(actions),
        source_ips: texts(sources),
        decision: decision.into(),
    }
}

fn allow(resource: &str, actions: &[&str]) -> v1::Policy {
    policy(resource, actions, &[], v1::Decision::Allow)
}

fn deny(resource: &str, actions: &[&str]) -> v1::Policy {
    policy(resource, actions, &[], v1::Decision::Deny)
}

fn topic(actions: Actions, name: &str) -> Right<'_> {
    Right { actions, kind: Kind::Topic, name }
}

fn ip(text: &str) -> Option<IpAddr> {
    Some(text.parse().expect("an address"))
}

#[test]
fn what_no_policy_is_about_is_denied() {
    assert_eq!(Policies::default().decide(topic(Actions::PUB, "a"), None), Err("no matched policies."));
    let policies = Policies::of(&[allow("Topic:a", &["Pub"])]);
    assert!(policies.decide(topic(Actions::PUB, "a"), None).is_ok());
    for other in [topic(Actions::SUB, "a"), topic(Actions::PUB, "ab"), topic(Actions::PUB, "")] {
        assert!(policies.decide(other, None).is_err(), "{other:?}");
    }
    let group = Right { actions: Actions::PUB, kind: Kind::Group, name: "a" };
    assert!(policies.decide(group, None).is_err());
}

#[test]
fn the_more_specific_policy_decides() {
    let policies = Policies::of(&[
        allow("*", &["All"]),
        deny("Topic:*", &["All"]),
        allow("Topic:or*", &["All"]),
        deny("Topic:order*", &["All"]),
        allow("Topic:orders", &["All"]),
    ]);
    let decide = |name| policies.decide(topic(Actions::PUB, name), None).is_ok();
    assert_eq!(["orders", "order", "orb", "x"].map(decide), [true, false, true, false]);
    let group = Right { actions: Actions::SUB, kind: Kind::Group, name: "g" };
    assert!(policies.decide(group, None).is_ok());
    let equal = Policies::of(&[allow("Topic:a", &["Pub"]), deny("Topic:a", &["All"])]);
    assert_eq!(equal.decide(topic(Actions::PUB, "a"), None), Err("the decision is deny."));
}

#[test]
fn a_policy_counts_from_its_addresses_only() {
    let sources = &["10.1.0.0/16", "192.168.0.7", "2001:db8::/32"];
    let policies = Policies::of(&[policy("Topic:a", &["Pub"], sources, v1::Decision::Allow)]);
    let decide = |source| policies.decide(topic(Actions::PUB, "a"), source).is_ok();
    for inside in ["10.1.255.1", "192.168.0.7", "2001:db8:1::1"] {
        assert!(decide(ip(inside)), "{inside}");
    }
    for outside in ["10.2.0.1", "192.168.0.8", "2001:db9::1"] {
        assert!(!decide(ip(outside)), "{outside}");
    }
    assert!(!decide(None));
    let everywhere = Policies::of(&[policy("Topic:a", &["Pub"], &["0.0.0.0/0"], v1::Decision::Allow)]);
    assert!(everywhere.decide(topic(Actions::PUB, "a"), ip("8.8.8.8")).is_ok());
}

#[test]
fn one_of_the_actions_is_enough() {
    let policies = Policies::of(&[allow("Topic:a", &["Sub"])]);
    assert!(policies.decide(topic(Actions::PUB.or(Actions::SUB), "a"), None).is_ok());
    assert_eq!(Actions::PUB.or(Actions::SUB).to_string(), "Pub or Sub");
}

#[test]
fn what_is_no_policy_is_refused_and_says_what_is() {
    let cases = [
        (allow("Topic", &["Pub"]), "Topic"),
        (allow("Queue:a", &["Pub"]), "Queue:a"),
        (allow("Topic:a*b", &["Pub"]), "a*b"),
        (allow("Topic:", &["Pub"]), "Topic:"),
        (allow("Topic:a", &["Publish"]), "Publish"),
        (allow("Topic:a", &[]), "actions"),
        (policy("Topic:a", &["Pub"], &["10.0.0.0/33"], v1::Decision::Allow), "10.0.0.0/33"),
        (policy("Topic:a", &["Pub"], &["host"], v1::Decision::Allow), "host"),
        (policy("Topic:a", &["Pub"], &[], v1::Decision::Unspecified), "decision"),
    ];
    for (policy, named) in cases {
        let refused = check(&policy).expect_err(named).to_string();
        assert!(refused.contains(named), "{refused}");
        // Stored all the same, by another version say: it never opens a door.
        let policies = Policies::of(&[allow("*", &["All"]), policy]);
        assert!(policies.decide(topic(Actions::PUB, "a"), ip("10.0.0.1")).is_err());
    }
}

/// All that a random policy may say.
fn any_policy() -> impl Strategy<Value = v1::Policy> {
    let resource = prop::sample::select(vec![
        "*",
        "Topic:*",
        "Topic:a*",
        "Topic:ab*",
        "Topic:ab",
        "Topic:abc",
        "Group:*",
        "Group:ab",
    ]);
    let actions = prop::sample::subsequence(vec!["All", "Pub", "Sub", "Get"], 1..3);
    let sources = prop::sample::subsequence(vec!["10.0.0.0/8", "10.1.0.0/16", "10.1.2.3"], 0..2);
    (resource, actions, sources, any::<bool>()).prop_map(|(resource, actions, sources, allows)| {
        let decision = if allows { v1::Decision::Allow } else { v1::Decision::Deny };
        policy(resource, &actions, &sources, decision)
    })
}

/// The rule, word by word: the policies that fit, then how specific each is.
fn model(policies: &[v1::Policy], right: Right<'_>, source: &str) -> bool {
    let fits = |policy: &&v1::Policy| {
        let named = match policy.resource.as_str() {
            "*" => true,
            text => {
                let (kind, name) = text.split_once(':').expect("a kind");
                let same = kind == right.kind.to_string();
                same && match name.strip_suffix('*') {
                    Some(prefix) => right.name.starts_with(prefix),
                    None => right.name == name,
                }
            }
        };
        let word = right.actions.to_string();
        let from = |network: &String| match network.as_str() {
            "10.0.0.0/8" => source.starts_with("10."),
            "10.1.0.0/16" => source.starts_with("10.1."),
            one => one == source,
        };
        named
            && policy.actions.iter().any(|action| action == "All" || *action == word)
            && (policy.source_ips.is_empty() || policy.source_ips.iter().any(from))
    };
    // A name counts as longer than every prefix; `*` is shorter than `Topic:*`.
    let specific = |policy: &v1::Policy| {
        let literal = usize::from(!policy.resource.ends_with('*'));
        literal * 1000 + policy.resource.len()
    };
    let most = policies.iter().filter(fits).map(specific).max();
    let mut deciding =
        policies.iter().filter(fits).filter(|policy| Some(specific(policy)) == most).peekable();
    deciding.peek().is_some() && deciding.all(|policy| policy.decision() == v1::Decision::Allow)
}

proptest! {
    #[test]
    fn decisions_are_those_of_the_model(
        policies in prop::collection::vec(any_policy(), 0..8),
        kind in prop::sample::select(vec![Kind::Topic, Kind::Group]),
        name in prop::sample::select(vec!["a", "ab", "abc", "b"]),
        actions in prop::sample::select(vec![Actions::PUB, Actions::SUB, Actions::GET, Actions::LIST]),
        source in prop::sample::select(vec!["10.1.2.3", "10.1.9.9", "10.9.9.9", "11.0.0.1"]),
    ) {
        let right = Right { actions, kind, name };
        let decided = Policies::of(&policies).decide(right, ip(source)).is_ok();
        prop_assert_eq!(decided, model(&policies, right, source));
    }
}
