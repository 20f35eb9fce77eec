//! What a broker has opened of what it keeps, master or slave: the log, and what follows from it. Blocks the thread that
//! opens it while the log is recovered.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use karman_store::{Listener, LogId, OpenError, Projection, QueueNumber, Store, StoreConfig};

use crate::catalog::Catalog;
use crate::config::BrokerConfig;
use crate::held::HeldTable;
use crate::lite::LiteTable;
use crate::lite::topics::LiteTopics;
use crate::progress::ProgressTable;

/// See the module's comment. A slave keeps all of it up to date, so that it can serve the moment it is a master.
#[derive(Debug, Clone)]
pub struct Opened {
    /// The log.
    pub store: Arc<Store>,
    /// Topics and groups.
    pub catalog: Arc<Catalog>,
    /// How far groups have come.
    pub progress: Arc<ProgressTable>,
    /// Delayed messages and undecided transactions.
    pub held: Arc<HeldTable>,
    /// Which lite topics there are.
    pub lite_topics: Arc<LiteTopics>,
    /// How far groups have come with them.
    pub lite: Arc<LiteTable>,
}

/// Wakes the readers of a topic or lite topic when the log says that a message is there, and says how long its messages are kept.
struct Arrivals(Arc<Catalog>, Arc<LiteTable>);

impl Listener for Arrivals {
    fn confirmed(&self, queue: QueueNumber, _count: u32) {
        match self.0.owner_of(queue) {
            Some(topic) => topic.arrived(),
            None => self.1.arrived(queue),
        }
    }

    fn reserved(&self, queue: QueueNumber) -> Option<Duration> {
        let parent = || Some(self.1.topics.owner_of(queue)?.topic.clone());
        self.0.owner_of(queue).or_else(parent)?.reserved()
    }
}

/// How the store of a broker is opened.
pub fn store_config(config: &BrokerConfig) -> StoreConfig {
    StoreConfig {
        owner: format!("{}/{}", config.broker_cluster_name, config.broker_name),
        segment_size_bytes: config.mapped_file_size_commit_log,
        flush_interval: Duration::from_millis(config.flush_interval_commit_log),
        retention: config.retention(),
        mends: config.has_replicas(),
        scrub_bytes_per_second: config.scrub_rate_bytes_per_second,
        ..StoreConfig::new(Path::new(&config.store_path_root_dir).join("store"))
    }
}

/// Opens the store, as that of a slave if it `follows`; `log`: which log a new one is a replica of.
pub fn open(config: &BrokerConfig, follows: bool, log: Option<LogId>) -> Result<Opened, OpenError> {
    let catalog = Arc::new(Catalog::default());
    let progress = Arc::new(ProgressTable::new(catalog.clone()));
    let held = Arc::new(HeldTable::default());
    let lite_topics = Arc::new(LiteTopics::new(catalog.clone()));
    let lite = Arc::new(LiteTable::new(catalog.clone(), lite_topics.clone()));
    // The catalog first: progress is about its topics and groups.
    let projections: Vec<Arc<dyn Projection>> =
        vec![catalog.clone(), progress.clone(), held.clone(), lite_topics.clone(), lite.clone()];
    let listener = Arc::new(Arrivals(catalog.clone(), lite.clone()));
    let store = StoreConfig { follows, log, ..store_config(config) };
    let store = Arc::new(Store::open(store, projections, listener)?);
    Ok(Opened { store, catalog, progress, held, lite_topics, lite })
}
