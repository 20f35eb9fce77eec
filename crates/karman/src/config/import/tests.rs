use super::*;

fn imported(role: Role, text: &str) -> Imported {
    import(role, &Properties::parse(text.as_bytes()).unwrap(), Path::new("some/broker.conf"))
}

fn line_of<'a>(imported: &'a Imported, key: &str) -> &'a Line {
    imported.keys.iter().find(|line| line.key == key).unwrap_or_else(|| panic!("{key} is not in the report"))
}

#[test]
fn a_broker_of_rocketmq_becomes_one_of_ours_and_every_key_is_told_of() {
    let imported = imported(
        Role::Broker,
        "brokerClusterName = DefaultCluster\nbrokerName=broker-a\nbrokerId:0\n# a comment\n! another\n\
         deleteWhen=04\nfileReservedTime=48\nbrokerRole=ASYNC_MASTER\nflushDiskType=ASYNC_FLUSH\n\
         namesrvAddr=a:9876;\\\n    b:9876\nlistenPort=30911\nbrokerIP1=10.0.0.7\nhaListenPort=30912\n\
         transientStorePoolEnable=true\nmessageDelayLevel=1s 5s\naclEnable=false\nautoCreateTopicEnable=TRUE\n\
         fileReservedTime=24\nfoo=bar\n",
    );
    let toml = "# broker.conf of RocketMQ, by `karman config import`.\n\
                brokerClusterName = \"DefaultCluster\"\n\
                brokerName = \"broker-a\"\n\
                brokerId = 0\n\
                deleteWhen = \"04\"\n\
                fileReservedTime = 24\n\
                brokerRole = \"ASYNC_MASTER\"\n\
                flushDiskType = \"ASYNC_FLUSH\"\n\
                namesrvAddr = \"a:9876;b:9876\"\n\
                internalListenAddress = \"0.0.0.0:30911\"  # listenPort\n\
                advertisedAddress = \"10.0.0.7\"  # brokerIP1\n\
                internalAdvertisedAddress = \"10.0.0.7\"  # brokerIP1\n\
                autoCreateTopicEnable = true\n";
    assert_eq!(imported.toml, toml);
    assert_eq!(imported.problems, [""; 0]);
    let fates = [
        ("brokerName", Word::Mapped),
        ("listenPort", Word::Mapped),
        ("haListenPort", Word::NotNeeded),
        ("transientStorePoolEnable", Word::NotNeeded),
        ("messageDelayLevel", Word::NotSupported),
        ("aclEnable", Word::NotNeeded),
        ("foo", Word::Unknown),
    ];
    for (key, fate) in fates {
        let line = line_of(&imported, key);
        assert_eq!(line.fate, fate, "{key}");
        assert!(fate == Word::Mapped || !line.note.is_empty(), "{key} without a reason");
    }
    assert_eq!(imported.keys.len(), 16);
}

#[test]
fn a_default_that_is_another_here_is_told_of_unless_the_file_sets_it() {
    let flush =
        Default { key: "flushDiskType".into(), rocketmq: "ASYNC_FLUSH".into(), here: "SYNC_FLUSH".into() };
    assert!(imported(Role::Broker, "brokerName=a").defaults.contains(&flush));
    assert!(!imported(Role::Broker, "flushDiskType=SYNC_FLUSH").defaults.contains(&flush));
    assert!(imported(Role::Broker, "").defaults.iter().all(|default| default.key != "fileReservedTime"));
}

#[test]
fn what_does_not_start_yet_is_told() {
    let slave = imported(Role::Broker, "brokerName=a\nbrokerId=1\nbrokerRole=SLAVE");
    assert!(slave.problems.iter().any(|problem| problem.contains("namesrvAddr")), "{:?}", slave.problems);
    assert_eq!(line_of(&slave, "brokerRole").note, "");
    let promise = imported(Role::Broker, "brokerRole=SYNC_MASTER\ninSyncReplicas=1\nnamesrvAddr=n:9876");
    assert!(line_of(&promise, "brokerRole").note.contains("waits for a slave"));
    assert!(promise.problems[0].contains("inSyncReplicas"), "{:?}", promise.problems);
    let number = imported(
        Role::Broker,
        "fileReservedTime=two days\nnamesrvAddr=n:9876\nbrokerElectionPriority=9999999999",
    );
    assert_eq!(line_of(&number, "fileReservedTime").fate, Word::NotSupported);
    assert!(line_of(&number, "brokerElectionPriority").note.contains("9999999999"));
    assert_eq!(number.problems, [""; 0]);
    let numbered = imported(
        Role::Broker,
        "enableControllerMode=true\ncontrollerAddr=n:9878\nnamesrvAddr=n:9876\nbrokerId=-1",
    );
    assert!(line_of(&numbered, "brokerId").note.contains("from 1 up"));
    assert!(line_of(&numbered, "controllerAddr").note.contains("9876"));
    assert!(numbered.problems.iter().any(|problem| problem.contains("brokerId")), "{:?}", numbered.problems);
}

#[test]
fn a_namesrv_with_a_controller_is_known_by_its_keys() {
    // RocketMQ ships such a file with its licence in front, in a form that is no comment.
    let text = "<!--\n  Licensed to somebody\n  -->\nlistenPort = 9877\nenableControllerInNamesrv = true\n\
                controllerDLegerGroup = group1\n\
                controllerDLegerPeers = n0-ns-a:9878;n1-ns-b:9878;n2-ns-c:9878\ncontrollerDLegerSelfId = n2\n";
    let properties = Properties::parse(text.as_bytes()).unwrap();
    assert_eq!(likely_role(&properties), Role::Namesrv);
    let imported = import(Role::Namesrv, &properties, Path::new("namesrv-n2.conf"));
    let toml = "# namesrv-n2.conf of RocketMQ, by `karman config import`.\n\
                grpcListenAddress = \"0.0.0.0:9877\"  # listenPort\n\
                enableControllerInNamesrv = true\n\
                controllerDLegerGroup = \"group1\"\n\
                controllerPeers = \"1-ns-a:9877;2-ns-b:9877;3-ns-c:9877\"  # controllerDLegerPeers\n\
                controllerSelfId = 3  # controllerDLegerSelfId\n";
    assert_eq!(imported.toml, toml);
    assert_eq!(imported.problems, [""; 0]);
    let alone = Properties::parse(b"controllerDLegerPeers=n1-c:9877\ncontrollerDLegerSelfId=n1").unwrap();
    assert_eq!(likely_role(&alone), Role::Namesrv);
    let alone = import(Role::Namesrv, &alone, Path::new("controller.conf"));
    assert!(
        alone.toml.contains("enableControllerInNamesrv = true")
            && alone.toml.contains("controllerSelfId = 1 ")
    );
    assert_eq!(likely_role(&Properties::parse(b"brokerName=a\nlistenPort=1").unwrap()), Role::Broker);
}

#[test]
fn what_comes_out_is_taken_as_it_is_even_if_values_are_odd() {
    let imported = imported(
        Role::Broker,
        "storePathRootDir=/a\\u00e4/\"x\"\\\\y\\tz\nnamesrvAddr=n:9876\nbindAddress=::1",
    );
    let read: toml::Table = toml::from_str(&imported.toml).unwrap();
    assert_eq!(read["storePathRootDir"].as_str(), Some("/a\u{e4}/\"x\"\\y\tz"));
    assert_eq!(read["grpcListenAddress"].as_str(), Some("[::1]:8081"));
    assert_eq!(read["internalListenAddress"].as_str(), Some("[::1]:10911"));
    assert_eq!(imported.problems, [""; 0]);
    assert!(Properties::parse(b"a=\\u12").is_err());
}
