use super::*;

#[test]
fn the_defaults_can_be_used() {
    assert_eq!(BrokerConfig::default().invalid(), []);
}

#[test]
fn the_store_keeps_by_default_what_it_keeps_without_being_told() {
    assert_eq!(BrokerConfig::default().retention(), Retention::default());
}

#[test]
fn hours_are_a_list_and_the_ladder_goes_up() {
    let config = BrokerConfig {
        delete_when: "04; 16".into(),
        commit_log_size_limit_bytes: 3 << 30,
        ..BrokerConfig::default()
    };
    assert_eq!(config.invalid(), []);
    let retention = config.retention();
    assert_eq!((retention.delete_hours, retention.size_limit_bytes), (vec![4, 16], Some(3 << 30)));
    for when in ["", "24", "4 am", "04,16", "04;"] {
        let config = BrokerConfig { delete_when: when.into(), ..BrokerConfig::default() };
        assert_eq!(config.invalid().len(), 1, "{when:?}");
    }
    let config = BrokerConfig {
        disk_max_used_space_ratio: 80,
        disk_space_clean_forcibly_ratio: 70,
        disk_space_warning_level_ratio: 101,
        commit_log_size_limit_bytes: (3 << 30) - 1,
        ..BrokerConfig::default()
    };
    let keys: Vec<_> = config.invalid().iter().map(|invalid| invalid.key).collect();
    assert_eq!(
        keys,
        ["commitLogSizeLimitBytes", "diskSpaceCleanForciblyRatio", "diskSpaceWarningLevelRatio"]
    );
}

#[test]
fn every_unusable_value_is_named() {
    let config = BrokerConfig {
        broker_name: "a/b".into(),
        flush_disk_type: "MAYBE".into(),
        grpc_listen_address: "localhost".into(),
        mapped_file_size_commit_log: 5,
        ..BrokerConfig::default()
    };
    let keys: Vec<_> = config.invalid().iter().map(|invalid| invalid.key).collect();
    assert_eq!(keys, ["brokerName", "grpcListenAddress", "flushDiskType", "mappedFileSizeCommitLog"]);
}
