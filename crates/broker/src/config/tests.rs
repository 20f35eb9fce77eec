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
fn the_longest_delay_is_one_limit_and_the_other_key_bounds_it() {
    const DAY_MS: u64 = 86_400_000;
    let refused = |max_delay_time_mills, timer_max_delay_sec| {
        let config = BrokerConfig { max_delay_time_mills, timer_max_delay_sec, ..BrokerConfig::default() };
        config.invalid().iter().map(|invalid| invalid.key).collect::<Vec<_>>()
    };
    let default = BrokerConfig::default();
    // RocketMQ's own values, and the longest there is.
    for (millis, seconds) in [(DAY_MS, 3 * 86_400), (40 * DAY_MS, default.timer_max_delay_sec)] {
        assert_eq!(refused(millis, seconds), [""; 0]);
    }
    assert_eq!(refused(7 * DAY_MS, 3 * 86_400), ["maxDelayTimeMills"]);
    assert_eq!(refused(40 * DAY_MS + 1, default.timer_max_delay_sec), ["maxDelayTimeMills"]);
    assert_eq!(refused(DAY_MS, 40 * 86_400 + 1), ["timerMaxDelaySec"]);
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
