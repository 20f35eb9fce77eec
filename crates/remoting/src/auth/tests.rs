use std::time::{SystemTime, UNIX_EPOCH};

use tonic::metadata::MetadataValue;

use super::operator::Call;
use super::*;
use crate::civil;
use crate::proto::karman as v1;
use crate::proto::v2;
use crate::quota::Refusals;

const DATE: &str = "20261127T170000Z";

fn record(name: &str, policies: &[(&str, &str)]) -> v1::User {
    let policy = |(resource, action): &(&str, &str)| v1::Policy {
        resource: (*resource).to_owned(),
        actions: vec![(*action).to_owned()],
        decision: v1::Decision::Allow.into(),
        ..Default::default()
    };
    v1::User {
        name: name.to_owned(),
        secret: Some(v1::Secret { text: format!("secret of {name}") }),
        policies: policies.iter().map(policy).collect(),
        version: 1,
        ..Default::default()
    }
}

fn auth(users: impl IntoIterator<Item = v1::User>) -> Auth {
    let config = AuthConfig {
        authentication: true,
        authorization: true,
        initial_user: r#"{"username":"root","password":"secret of root"}"#.into(),
        cluster_secret: "open sesame".into(),
        nodes_have_tls: false,
    };
    let known = Users::default();
    known.merge(users);
    Auth::new(config, known)
}

fn route(topic: &str) -> v2::QueryRouteRequest {
    let name = topic.to_owned();
    v2::QueryRouteRequest { topic: Some(v2::Resource { name, ..Default::default() }), endpoints: None }
}

fn signed<T>(message: T, user: &str, secret: &str) -> Request<T> {
    signed_at(message, user, secret, DATE)
}

fn signed_at<T>(message: T, user: &str, secret: &str, date: &str) -> Request<T> {
    let mut request = Request::new(message);
    let header = signature::sign(user, &signature::key(secret), date);
    request.metadata_mut().insert(AUTHORIZATION, MetadataValue::try_from(header).expect("ASCII"));
    request.metadata_mut().insert(DATE_TIME, MetadataValue::try_from(date).expect("ASCII"));
    request.extensions_mut().insert(Peer::new("10.0.0.1:1".parse().ok(), false, None));
    request
}

fn refused(auth: &Auth, request: &Request<impl Needs>) -> String {
    auth.admit(request).expect_err("refused").to_string()
}

#[test]
fn only_a_right_signature_of_a_user_with_the_right_is_let_in() {
    let auth = auth([record("ann", &[("Topic:orders", "Pub")])]);
    assert_eq!(auth.admit(&signed(route("orders"), "ann", "secret of ann")).map(drop), Ok(()));
    assert_eq!(auth.admit(&signed(route("other"), "root", "secret of root")).map(drop), Ok(()));
    let text = refused(&auth, &signed(route("orders"), "ann", "secret of bob"));
    assert_eq!(text, "Check signature failed for accessKey=ann");
    let text = refused(&auth, &signed(route("orders"), "bob", "secret of bob"));
    assert!(text.starts_with("Username is not matched"), "{text}");
    let text = refused(&auth, &signed(route("other"), "ann", "secret of ann"));
    let expected = "User:ann has no permission to access Topic:other from 10.0.0.1, no matched policies.";
    assert!(text.starts_with(expected), "{text}");
    let text = refused(&auth, &Request::new(route("orders")));
    assert!(text.contains("authorization header"), "{text}");
}

#[test]
fn a_signature_that_was_verified_counts_until_users_change() {
    let auth = auth([record("ann", &[("*", "All")])]);
    let mut request = signed(route("t"), "ann", "secret of ann");
    for _ in 0..2 {
        assert_eq!(auth.admit(&request).map(drop), Ok(()));
    }
    // What was verified is not taken for another time.
    request.metadata_mut().insert(DATE_TIME, MetadataValue::from_static("20261127T170001Z"));
    assert!(refused(&auth, &request).contains("Check signature failed"));
    request.metadata_mut().insert(DATE_TIME, MetadataValue::from_static(DATE));
    auth.users().merge([v1::User { disabled: true, version: 2, ..record("ann", &[]) }]);
    assert!(refused(&auth, &request).contains("Username is not matched"));
}

#[test]
fn a_call_between_nodes_is_believed_by_the_secret_only() {
    let auth = auth([]);
    let mut request = Request::new(route("t"));
    *request.metadata_mut() = metadata::for_relay(request.metadata());
    assert!(refused(&auth, &request).contains("secret of the cluster"));
    metadata::add_secret(request.metadata_mut(), &"open sesamf".into());
    assert!(auth.admit(&request).is_err());
    metadata::add_secret(request.metadata_mut(), &"open sesame".into());
    assert_eq!(auth.admit(&request).map(drop), Ok(()));
}

#[test]
fn a_certificate_says_who_calls_where_nothing_is_signed_and_makes_no_node() {
    let auth = auth([record("ann", &[("Topic:t", "Sub")])]);
    let came = |certified: &str, message| {
        let mut request = Request::new(message);
        request.extensions_mut().insert(Peer::new(None, false, Some(certified.to_owned())));
        request
    };
    assert_eq!(auth.admit(&came("ann", route("t"))).map(drop), Ok(()));
    assert!(refused(&auth, &came("ann", route("other"))).contains("User:ann has no permission"));
    assert!(refused(&auth, &came("bob", route("t"))).contains("as the certificate of the client says"));
    // A signature counts more, also one that is wrong.
    let mut both = signed(route("other"), "root", "secret of root");
    both.extensions_mut().insert(Peer::new(None, false, Some("ann".to_owned())));
    assert_eq!(auth.admit(&both).map(drop), Ok(()));
    let mut wrong = signed(route("t"), "ann", "a guess");
    wrong.extensions_mut().insert(Peer::new(None, false, Some("ann".to_owned())));
    assert!(refused(&auth, &wrong).contains("Check signature failed"));
    let mut relayed = came("ann", route("t"));
    *relayed.metadata_mut() = metadata::for_relay(relayed.metadata());
    assert!(refused(&auth, &relayed).contains("secret of the cluster"));
}

#[test]
fn where_nodes_have_certificates_the_secret_alone_makes_none() {
    let config = AuthConfig {
        authentication: true,
        cluster_secret: "open sesame".into(),
        nodes_have_tls: true,
        ..AuthConfig::default()
    };
    let auth = Auth::new(config, Users::default());
    let mut request = Request::new(route("t"));
    metadata::add_secret(request.metadata_mut(), &"open sesame".into());
    assert_eq!(auth.admit(&request).map(drop), Ok(()), "an operator");
    *request.metadata_mut() = metadata::for_relay(request.metadata());
    for (is_node, expected) in [(false, false), (true, true)] {
        request.extensions_mut().insert(Peer::new(None, is_node, None));
        assert_eq!(auth.admit(&request).is_ok(), expected, "as a node: {is_node}");
    }
}

#[test]
fn a_long_call_ends_with_the_rights_of_its_user() {
    let auth = auth([record("ann", &[("Topic:t", "Sub")])]);
    let request = signed(route("t"), "ann", "secret of ann");
    let who = auth.who(request.metadata(), request.extensions()).expect("known");
    let still = || auth.still_allows(&who, request.get_ref(), None);
    assert_eq!(still(), Ok(()));
    auth.users().merge([v1::User { version: 2, ..record("ann", &[("*", "All")]) }]);
    assert_eq!(still(), Ok(()));
    auth.users().merge([v1::User { version: 3, ..record("ann", &[]) }]);
    assert!(still().is_err());
    auth.users().merge([v1::User { version: 4, deleted: true, ..record("ann", &[("*", "All")]) }]);
    assert!(still().is_err());
}

/// As an operator writes the time of so many seconds ago.
fn ago(seconds: i64) -> String {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_secs();
    civil::format_ms(since.saturating_add_signed(-seconds) * 1000)
}

const LIST_TOPICS: &str = "/karman.v1.Admin/ListTopics";

/// `message` as `user` signs it for `call`.
fn operator_s<T>(message: T, user: &str, call: Call<'_>) -> Request<T> {
    let mut request = Request::new(message);
    let header = call.sign(user, &signature::key(&format!("secret of {user}")));
    for (name, value) in [
        (AUTHORIZATION, &*header),
        (DATE_TIME, call.date_time),
        (operator::NODE, call.node),
        (operator::NONCE, call.nonce),
    ] {
        request.metadata_mut().insert(name, MetadataValue::try_from(value).expect("ASCII"));
    }
    request.extensions_mut().insert(Peer::new("10.0.0.1:1".parse().ok(), false, None));
    request
}

/// What becomes of an operator's call of `path`.
fn operate<T: Administers + Clone>(auth: &Auth, request: &Request<T>, path: &str) -> Result<(), String> {
    let refused = |why: Rejection| why.to_string();
    let (metadata, mut extensions) = (request.metadata(), request.extensions().clone());
    extensions.insert(auth.enter(metadata, &extensions, path).map_err(refused)?);
    auth.admit_operator(metadata, &extensions, request.get_ref(), "a call", "c").map_err(refused)
}

#[test]
fn an_operator_s_call_is_taken_once_and_is_of_no_use_elsewhere_or_later() {
    let (auth, other) = (auth([record("ann", &[("*", "All")])]), auth([record("ann", &[("*", "All")])]));
    let call = |date: &str| {
        let (nonce, node) = (operator::random(), auth.node().to_owned());
        let call = Call { path: LIST_TOPICS, node: &node, nonce: &nonce, date_time: date };
        operator_s(v1::ListTopicsRequest {}, "ann", call)
    };
    let refused = |auth: &Auth, request: &Request<_>, path: &str, why: &str| {
        let refused = operate(auth, request, path).expect_err(why);
        assert!(refused.contains(why), "{refused}");
    };
    for seconds in [0, 290, -290] {
        let request = call(&ago(seconds));
        refused(&auth, &request, "/karman.v1.Admin/ListGroups", "Check signature failed");
        refused(&other, &request, LIST_TOPICS, "for another node");
        // None of these counts as the one time.
        assert_eq!(operate(&auth, &request, LIST_TOPICS), Ok(()));
        refused(&auth, &request, LIST_TOPICS, "was taken already");
    }
    for date in [&*ago(310), &ago(-310), DATE, "2026-11-27T17:00:00Z", ""] {
        refused(&auth, &call(date), LIST_TOPICS, "within 300 s");
    }
    let mut wrong = call(&ago(0));
    wrong.metadata_mut().insert(operator::NONCE, MetadataValue::from_static("1"));
    refused(&auth, &wrong, LIST_TOPICS, "Check signature failed");
    let short = Call { path: LIST_TOPICS, node: auth.node(), nonce: "1", date_time: &ago(0) };
    refused(&auth, &operator_s(v1::ListTopicsRequest {}, "ann", short), LIST_TOPICS, "32 digits");
}

#[test]
fn what_a_client_signs_is_no_operator_s_call() {
    let auth = auth([record("ann", &[("*", "All")])]);
    let list = signed_at(v1::ListTopicsRequest {}, "ann", "secret of ann", &ago(0));
    let refused = operate(&auth, &list, LIST_TOPICS).expect_err("refused");
    assert!(refused.contains("a client's signature"), "{refused}");
    // Of a client all that it may do is taken: its clock and its way of writing are its own.
    for date in [DATE, &ago(0), &ago(10_000)] {
        let route = signed_at(route("orders"), "ann", "secret of ann", date);
        for _ in 0..2 {
            assert_eq!(auth.admit(&route).map(drop), Ok(()));
        }
    }
    // And the other way round.
    let call = Call { path: LIST_TOPICS, node: auth.node(), nonce: &operator::random(), date_time: &ago(0) };
    assert!(refused_as_client(&auth, &operator_s(route("orders"), "ann", call)));
}

fn refused_as_client(auth: &Auth, request: &Request<v2::QueryRouteRequest>) -> bool {
    refused(auth, request).contains("is not of the form MQv2-HMAC-SHA1")
}

#[test]
fn a_service_without_the_gate_refuses_operators() {
    let auth = auth([]);
    let mut list = Request::new(v1::ListTopicsRequest {});
    metadata::add_secret(list.metadata_mut(), &"open sesame".into());
    assert_eq!(operate(&auth, &list, LIST_TOPICS), Ok(()));
    let (metadata, extensions) = (list.metadata(), list.extensions());
    let refused = auth.admit_operator(metadata, extensions, list.get_ref(), "list_topics", "c");
    assert!(refused.expect_err("refused").to_string().contains("gate"));
}

fn send(bytes: &[usize]) -> v2::SendMessageRequest {
    v2::SendMessageRequest { messages: bytes.iter().map(|&size| vec![0; size].into()).collect() }
}

#[test]
fn what_a_user_has_of_its_quota_survives_changes_of_users() {
    let quota = |version| v1::User { bytes_per_second: 1000, version, ..record("ann", &[("*", "All")]) };
    let auth = auth([quota(1), record("bob", &[])]);
    let who = |auth: &Auth| {
        let request = signed(route("t"), "ann", "secret of ann");
        auth.admit(&request).expect("let in")
    };
    assert_eq!(who(&auth).may_send(&send(&[500, 600]).messages), Ok(()));
    // Another user changes, then this one: neither fills the bucket.
    auth.users().merge([v1::User { version: 2, ..record("bob", &[]) }]);
    auth.users().merge([quota(2)]);
    let refused = who(&auth).may_send(&send(&[1]).messages).expect_err("used up").to_string();
    assert!(refused.contains("user \"ann\"") && refused.contains("1000 bytes per second"), "{refused}");
    assert_eq!(auth.users().refusals(), [("ann".to_owned(), Refusals { bytes: 1, ..Refusals::default() })]);
    auth.users().merge([v1::User { version: 3, bytes_per_second: 0, ..quota(3) }]);
    assert_eq!(who(&auth).may_send(&send(&[1_000_000]).messages), Ok(()));
}

#[test]
fn a_connection_belongs_to_who_called_last() {
    let one = |name: &str| v1::User { connections_max: 1, ..record(name, &[("*", "All")]) };
    let auth = auth([one("ann"), one("bob")]);
    let first = signed(route("t"), "ann", "secret of ann");
    let call = |peer: &Request<v2::QueryRouteRequest>, user: &str, date: &str| {
        let mut request = signed_at(route("t"), user, &format!("secret of {user}"), date);
        let peer = peer.extensions().get::<Peer>().expect("a connection").clone();
        request.extensions_mut().insert(peer);
        auth.admit(&request).map(drop)
    };
    assert_eq!(call(&first, "ann", DATE), Ok(()));
    assert_eq!(call(&first, "ann", "another time"), Ok(()), "it has its place already");
    let second = signed(route("t"), "ann", "secret of ann");
    assert!(matches!(call(&second, "ann", DATE), Err(Rejection::TooManyRequests(_))));
    assert_eq!(call(&first, "bob", DATE), Ok(()), "it moves");
    assert_eq!(call(&second, "ann", DATE), Ok(()), "and makes room");
    assert!(call(&second, "bob", DATE).is_err());
    drop((first, second));
    assert_eq!(call(&signed(route("t"), "bob", "secret of bob"), "bob", DATE), Ok(()), "both are closed");
}

#[test]
fn only_super_users_change_users() {
    let auth = auth([record("ann", &[("*", "All")])]);
    let now = ago(0);
    let call = |path| Call { path, node: auth.node(), nonce: "", date_time: &now };
    let change = |name: &str| {
        let path = "/karman.v1.Admin/ChangeUser";
        let call = Call { nonce: &operator::random(), ..call(path) };
        operate(&auth, &operator_s(v1::ChangeUserRequest::default(), name, call), path)
    };
    assert!(change("ann").expect_err("refused").contains("super user"));
    assert_eq!(change("root"), Ok(()));
    let list = Call { nonce: &operator::random(), ..call(LIST_TOPICS) };
    assert_eq!(operate(&auth, &operator_s(v1::ListTopicsRequest {}, "ann", list), LIST_TOPICS), Ok(()));
}

#[test]
fn a_batch_needs_the_right_on_every_topic_it_names() {
    use prost::Message as _;
    let auth = auth([record("ann", &[("Topic:a", "Pub")])]);
    let message = |topic: &str| {
        let topic = Some(v2::Resource { name: topic.to_owned(), ..Default::default() });
        v2::Message { topic, ..Default::default() }.encode_to_vec()
    };
    let send = |messages: Vec<Vec<u8>>| {
        let messages = messages.into_iter().map(bytes::Bytes::from).collect();
        auth.admit(&signed(v2::SendMessageRequest { messages }, "ann", "secret of ann")).map(drop)
    };
    assert_eq!(send(vec![message("a"), message("a")]), Ok(()));
    assert!(send(vec![message("a"), message("b")]).is_err());
    // The topic twice in one message: the last is where it goes.
    assert!(send(vec![[message("a"), message("b")].concat()]).is_err());
    assert_eq!(send(vec![[message("b"), message("a")].concat()]), Ok(()));
}

#[test]
fn a_configuration_that_protects_nothing_is_refused() {
    let invalid = |config: &AuthConfig| {
        let wrong = config.rules().into_iter().filter(|(_, good)| !good);
        wrong.map(|(unusable, _)| unusable).collect::<Vec<_>>()
    };
    let good = AuthConfig { authentication: true, cluster_secret: "s".into(), ..AuthConfig::default() };
    assert_eq!(invalid(&good), []);
    let bad = AuthConfig { authorization: true, ..AuthConfig::default() };
    assert_eq!(invalid(&bad)[0].key, "authorizationEnabled");
    let bad = AuthConfig { cluster_secret: Secret::default(), ..good.clone() };
    assert_eq!(invalid(&bad)[0].key, "clusterSecret");
    for initial_user in ["root", "root:short", r#"{"username":"root"}"#] {
        let bad = AuthConfig { initial_user: initial_user.into(), ..good.clone() };
        assert_eq!(invalid(&bad)[0].key, "initAuthenticationUser");
        assert!(!invalid(&bad)[0].to_string().contains("short"));
    }
    let short = AuthConfig { initial_user: "root:long enough".into(), ..good };
    assert_eq!(invalid(&short), []);
}
