//! `once` and the store of files. The store of a process is `table`'s with a lock; Redis is tested with a real one.

use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};

use tempfile::TempDir;

use super::*;
use crate::message::{Birth, Message};

fn message() -> MessageView {
    let birth = Birth { time: std::time::SystemTime::UNIX_EPOCH, host: "here", in_transaction: false };
    let bytes = Message::new("orders", "a book").encode(0, "01AB".into(), &birth).unwrap().bytes;
    MessageView::decode(bytes, "n:1").unwrap()
}

fn memory() -> MemoryStore {
    MemoryStore::new(DedupeLimits::default())
}

async fn run<S: DedupeStore>(
    store: &S,
    count: &AtomicU32,
    result: Result<(), &'static str>,
) -> Result<(), OnceError<&'static str>> {
    let effect = async {
        count.fetch_add(1, Ordering::Relaxed);
        result
    };
    once(store, "g", &message(), effect).await
}

#[tokio::test]
async fn an_effect_that_succeeded_is_not_repeated_and_one_that_failed_is() {
    let (store, count) = (memory(), AtomicU32::new(0));
    assert!(matches!(run(&store, &count, Err("no stock")).await, Err(OnceError::Effect("no stock"))));
    assert!(run(&store, &count, Ok(())).await.is_ok());
    assert!(run(&store, &count, Ok(())).await.is_ok());
    assert_eq!(count.into_inner(), 2);
}

#[tokio::test]
async fn a_message_that_another_has_begun_with_is_an_error_and_no_effect() {
    let (store, count) = (memory(), AtomicU32::new(0));
    let at = message();
    let inner = once(&store, "g", &at, async { run(&store, &count, Ok(())).await });
    let error = inner.await.unwrap_err();
    assert!(matches!(error, OnceError::Effect(OnceError::InProgress { .. })), "{error}");
    assert!(error.to_string().contains("01AB"), "{error}");
    assert_eq!(count.into_inner(), 0);
}

#[tokio::test]
async fn a_message_whose_effect_panicked_is_free_at_once() {
    let (store, count) = (memory(), AtomicU32::new(0));
    let at = message();
    let panics = once::<_, _, &str>(&store, "g", &at, async { panic!("on purpose") });
    assert!(AssertUnwindSafe(panics).catch_unwind().await.is_err());
    assert!(run(&store, &count, Ok(())).await.is_ok());
    assert_eq!(count.into_inner(), 1);
}

#[tokio::test]
async fn a_message_whose_effect_was_dropped_half_way_stays_claimed() {
    let (store, count) = (memory(), AtomicU32::new(0));
    let at = message();
    let half = once::<_, _, &str>(&store, "g", &at, std::future::pending());
    assert!(half.now_or_never().is_none());
    assert!(matches!(run(&store, &count, Ok(())).await, Err(OnceError::InProgress { .. })));
}

/// Knows nothing and cannot be told anything.
struct Broken;

impl DedupeStore for Broken {
    async fn claim(&self, _: &str, _: &str) -> Result<Claim, DedupeError> {
        Ok(Claim::New(ClaimToken::random()))
    }

    async fn done(&self, _: &str, _: &str) -> Result<(), DedupeError> {
        Err(DedupeError::Failed { directory: "x".into() })
    }

    async fn release(&self, _: &str, _: &str, _: ClaimToken) -> Result<(), DedupeError> {
        Err(DedupeError::Failed { directory: "x".into() })
    }
}

#[tokio::test]
async fn what_has_happened_is_done_though_the_store_cannot_be_told() {
    let count = AtomicU32::new(0);
    assert!(run(&Broken, &count, Ok(())).await.is_ok());
    assert!(matches!(run(&Broken, &count, Err("x")).await, Err(OnceError::Effect("x"))));
}

#[tokio::test]
async fn a_full_store_is_an_error_and_no_effect() {
    let (store, count) = (MemoryStore::new(DedupeLimits::default().capacity(0)), AtomicU32::new(0));
    let error = run(&store, &count, Ok(())).await.unwrap_err();
    assert!(matches!(error, OnceError::Store { error: DedupeError::Full { .. }, .. }), "{error}");
    assert_eq!(count.into_inner(), 0);
}

fn open(directory: &Path) -> Result<FileStore, DedupeError> {
    FileStore::open(directory, DedupeLimits::default())
}

async fn claim(store: &FileStore, id: u32) -> Claim {
    store.claim("g", &id.to_string()).await.unwrap()
}

/// A directory in which the messages `0..count` are done.
async fn filled(count: u32) -> TempDir {
    let directory = tempfile::tempdir().unwrap();
    let store = open(directory.path()).unwrap();
    for id in 0..count {
        store.done("g", &id.to_string()).await.unwrap();
    }
    directory
}

const HEAD: usize = 8;
const RECORD: usize = 28;

#[tokio::test]
async fn what_is_done_is_known_after_a_restart_and_what_was_begun_is_free() {
    let directory = filled(3).await;
    let store = open(directory.path()).unwrap();
    assert!(matches!(claim(&store, 3).await, Claim::New(_)));
    drop(store);
    let store = open(directory.path()).unwrap();
    for id in 0..3 {
        assert_eq!(claim(&store, id).await, Claim::Done, "{id}");
    }
    assert!(matches!(claim(&store, 3).await, Claim::New(_)));
}

#[tokio::test]
async fn a_second_user_of_the_directory_is_refused_and_named_the_directory() {
    let directory = filled(0).await;
    let store = open(directory.path()).unwrap();
    let error = open(directory.path()).unwrap_err();
    assert!(matches!(error, DedupeError::InUse { .. }), "{error}");
    assert!(error.to_string().contains(directory.path().to_str().unwrap()), "{error}");
    drop(store);
    open(directory.path()).unwrap();
}

#[tokio::test]
async fn a_torn_tail_of_any_length_is_cut_off_and_the_rest_is_known() {
    let whole = fs::read(filled(3).await.path().join("done")).unwrap();
    assert_eq!(whole.len(), HEAD + 3 * RECORD);
    for len in HEAD..whole.len() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("done");
        // What is torn may be missing, or be zeros.
        for torn in [whole[..len].to_vec(), [&whole[..len], &vec![0; whole.len() - len][..]].concat()] {
            fs::write(&path, torn).unwrap();
            let store = open(directory.path()).unwrap();
            let whole_records = (len - HEAD) / RECORD;
            let left = fs::metadata(&path).unwrap().len();
            assert_eq!(left, (HEAD + whole_records * RECORD) as u64, "{len} bytes");
            for id in 0..3_u32 {
                let known = claim(&store, id).await == Claim::Done;
                assert_eq!(known, (id as usize) < whole_records, "{id} of {len} bytes");
            }
            store.done("g", "9").await.unwrap();
            drop(store);
            assert_eq!(claim(&open(directory.path()).unwrap(), 9).await, Claim::Done, "{len}");
        }
    }
}

#[tokio::test]
async fn damage_of_what_was_promised_stops_the_start_and_says_where() {
    let count = 130;
    let directory = filled(count).await;
    let path = directory.path().join("done");
    let mut bytes = fs::read(&path).unwrap();
    bytes[HEAD + RECORD + 3] ^= 1;
    fs::write(&path, &bytes).unwrap();
    let error = open(directory.path()).unwrap_err();
    let offset = (HEAD + RECORD) as u64;
    assert!(matches!(error, DedupeError::Damaged { offset: at, .. } if at == offset), "{error}");
    assert_eq!(fs::read(&path).unwrap(), bytes, "nothing was changed");
}

#[test]
fn another_file_is_left_alone() {
    let directory = tempfile::tempdir().unwrap();
    for other in [&b"done"[..], b"", b"something else"] {
        fs::write(directory.path().join("done"), other).unwrap();
        assert!(matches!(open(directory.path()).unwrap_err(), DedupeError::Foreign { .. }));
        assert_eq!(fs::read(directory.path().join("done")).unwrap(), other);
    }
}

#[tokio::test]
async fn the_file_does_not_grow_with_what_is_forgotten() {
    let directory = tempfile::tempdir().unwrap();
    let limits = DedupeLimits::default().window(Duration::ZERO);
    let store = FileStore::open(directory.path(), limits).unwrap();
    for round in 0..10 {
        let ids: Vec<_> = (0..1000).map(|id| format!("{round}-{id}")).collect();
        let dones = ids.iter().map(|id| store.done("g", id));
        for result in futures_util::future::join_all(dones).await {
            result.unwrap();
        }
    }
    drop(store);
    let len = fs::metadata(directory.path().join("done")).unwrap().len();
    assert!(len < 6000 * RECORD as u64, "{len} bytes");
    open(directory.path()).unwrap();
}

#[tokio::test]
async fn a_rewritten_file_holds_what_is_still_promised() {
    let directory = tempfile::tempdir().unwrap();
    let store = open(directory.path()).unwrap();
    // The same message again and again: one of its records is wanted.
    for _ in 0..5 {
        let ids: Vec<_> = (0..1000).map(|id| (id % 10).to_string()).collect();
        let dones = ids.iter().map(|id| store.done("g", id));
        futures_util::future::join_all(dones).await.into_iter().for_each(Result::unwrap);
    }
    drop(store);
    assert!(fs::metadata(directory.path().join("done")).unwrap().len() < 4500 * RECORD as u64);
    let store = open(directory.path()).unwrap();
    for id in 0..10 {
        assert_eq!(claim(&store, id).await, Claim::Done, "{id}");
    }
}
