//! Holds the table of RocketMQ's commands in `docs/cli.md` to what there is on both sides. Tests only.

use std::path::Path;

use clap::Parser as _;

use super::Cli;

/// Every command of `mqadmin` 5.3.
const VERBS: &str = "\
    updateTopic updateTopicList deleteTopic updateTopicPerm topicRoute topicStatus topicClusterList \
    topicList updateOrderConf allocateMQ updateStaticTopic remappingStaticTopic cleanUnusedTopic \
    updateSubGroup updateSubGroupList deleteSubGroup setConsumeMode getConsumerConfig consumerProgress \
    consumerStatus consumerConnection producerConnection producer startMonitoring resetOffsetByTime \
    skipAccumulatedMessage cloneGroupOffset brokerStatus getBrokerConfig updateBrokerConfig \
    brokerConsumeStats sendMsgStatus clusterRT checkMsgSendRT cleanExpiredCQ deleteExpiredCommitLog \
    resetMasterFlushOffset getBrokerEpoch getColdDataFlowCtrInfo updateColdDataFlowCtrGroupConfig \
    removeColdDataFlowCtrGroupConfig setCommitLogReadAheadMode addBroker removeBroker queryMsgById \
    queryMsgByKey queryMsgByUniqueKey queryMsgByOffset queryMsgTraceById printMsg printMsgByQueue \
    sendMessage consumeMessage dumpCompactionLog clusterList statsAll updateKvConfig deleteKvConfig \
    wipeWritePerm addWritePerm getNamesrvConfig updateNamesrvConfig queryCq checkRocksdbCqWriteProgress \
    haStatus getSyncStateSet getControllerMetaData getControllerConfig updateControllerConfig electMaster \
    cleanBrokerMetadata createUser updateUser deleteUser getUser listUser copyUser createAcl updateAcl \
    deleteAcl getAcl listAcl copyAcl exportMetadata exportMetadataInRocksDB exportConfigs exportMetrics \
    exportPopRecord rocksDBConfigToJson";

/// The rows of the table: what RocketMQ calls it, and the two cells behind.
fn rows() -> Vec<[String; 3]> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/cli.md");
    let page = std::fs::read_to_string(path).unwrap();
    let (_, section) = page.split_once("\n## From mqadmin\n").unwrap();
    let section = section.split("\n## ").next().unwrap_or_default();
    let table = section.lines().filter(|line| line.starts_with("| `"));
    let cells = |line: &str| line.trim_matches('|').split('|').map(|cell| cell.trim().to_owned()).collect();
    table.map(|line| Vec::try_into(cells(line)).unwrap()).collect()
}

/// What stands between backticks.
fn quoted(cell: &str) -> impl Iterator<Item = &str> {
    cell.split('`').skip(1).step_by(2)
}

#[test]
fn every_command_of_mqadmin_has_a_row() {
    let named: Vec<String> = rows().iter().map(|row| row[0].trim_matches('`').to_owned()).collect();
    let verbs: Vec<&str> = VERBS.split_whitespace().collect();
    assert_eq!(verbs.len(), 89);
    assert_eq!(named, verbs);
}

#[test]
fn every_command_that_the_table_names_can_be_typed() {
    let mut typed = 0;
    for [verb, ours, why] in rows() {
        let has_command = ours.starts_with("`karman ");
        assert!(has_command || (["no", "not yet"].contains(&&*ours) && !why.is_empty()), "{verb}: {ours}");
        for line in quoted(&ours) {
            let parsed = Cli::try_parse_from(line.split_whitespace());
            assert!(parsed.is_ok(), "{verb}: `{line}`: {}", parsed.err().unwrap());
            typed += 1;
        }
        // A remark names commands without saying all that they need.
        for line in quoted(&why).filter(|line| line.starts_with("karman ")) {
            let error = Cli::try_parse_from(line.split_whitespace()).err().map(|error| error.kind());
            let incomplete = clap::error::ErrorKind::MissingRequiredArgument;
            let bare = clap::error::ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand;
            assert!(
                error.is_none_or(|kind| kind == incomplete || kind == bare),
                "{verb}: `{line}`: {error:?}"
            );
        }
    }
    assert!(typed > 50, "{typed}");
}
