//! Compiled filters by their expression, shared by all data threads: a client sends its expression with every request.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::RwLock;

use super::{SqlError, SqlFilter};

/// Remembers a number of compiled filters; when it is full it forgets the one that was not asked for the longest.
#[derive(Debug)]
pub struct FilterCache {
    filters: RwLock<HashMap<Box<str>, Remembered>>,
    capacity: usize,
    /// Counts requests: what is newer has a higher number.
    requests: AtomicU64,
}

#[derive(Debug)]
struct Remembered {
    filter: Arc<SqlFilter>,
    last_request: AtomicU64,
}

impl FilterCache {
    /// For at most `capacity` filters, one at least.
    pub fn new(capacity: usize) -> Self {
        Self { filters: RwLock::default(), capacity: capacity.max(1), requests: AtomicU64::new(0) }
    }

    /// The filter of an expression, compiled if it is not known. Errors are not remembered.
    pub fn get(&self, expression: &str) -> Result<Arc<SqlFilter>, SqlError> {
        let request = self.requests.fetch_add(1, Ordering::Relaxed);
        if let Some(known) = self.filters.read().get(expression) {
            known.last_request.store(request, Ordering::Relaxed);
            return Ok(known.filter.clone());
        }
        let filter = Arc::new(SqlFilter::compile(expression)?);
        let mut filters = self.filters.write();
        if filters.len() >= self.capacity && !filters.contains_key(expression) {
            let age = |known: &Remembered| known.last_request.load(Ordering::Relaxed);
            let oldest = filters.iter().min_by_key(|(_, known)| age(known)).map(|(oldest, _)| oldest.clone());
            oldest.and_then(|oldest| filters.remove(&oldest));
        }
        let last_request = AtomicU64::new(request);
        filters.insert(expression.into(), Remembered { filter: filter.clone(), last_request });
        Ok(filter)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_known_expression_is_not_compiled_again() {
        let cache = FilterCache::new(2);
        let first = cache.get("a = 1").unwrap();
        assert!(Arc::ptr_eq(&first, &cache.get("a = 1").unwrap()));
        assert!(cache.get("a =").is_err());
    }

    #[test]
    fn when_it_is_full_the_longest_unused_goes() {
        let cache = FilterCache::new(2);
        let first = cache.get("a = 1").unwrap();
        let second = cache.get("b = 1").unwrap();
        cache.get("a = 1").unwrap();
        cache.get("c = 1").unwrap();
        assert_eq!(cache.filters.read().len(), 2);
        assert!(Arc::ptr_eq(&first, &cache.get("a = 1").unwrap()));
        assert!(!Arc::ptr_eq(&second, &cache.get("b = 1").unwrap()));
    }
}
