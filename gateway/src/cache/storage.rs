//! The memory of cached responses, bounded by their size.
//!
//! Pingora's own in-memory storage is for tests: it has no bound. This one keeps whole responses in moka,
//! which evicts those that are used least. A response that is still arriving is not served to others;
//! they wait for it at Pingora's cache lock.

use std::any::Any;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use moka::sync::Cache;
use pingora::cache::key::{CacheHashKey, HashBinary};
use pingora::cache::storage::{
    HandleHit, HandleMiss, MissFinishType, PurgeOutcome, PurgeTarget, PurgeType,
};
use pingora::cache::trace::SpanHandle;
use pingora::cache::{CacheKey, CacheMeta, HitHandler, MissHandler, Storage};
use pingora::http::ResponseHeader;
use pingora::{Error, ErrorType, Result};

use super::tags::{CacheTags, TagEpochs};

/// How long a response is kept, fresh or not: after that it is not worth a revalidation.
const KEPT_FOR: Duration = Duration::from_secs(2 * 60 * 60);
/// Memory of an entry besides its head and body: keys, times and moka's own.
const OVERHEAD_BYTES: usize = 400;

/// A stored response.
struct Entry {
    head: StoredHead,
    body: Bytes,
    epochs: TagEpochs,
}

/// What Pingora knows of a response.
#[derive(Clone)]
struct StoredHead {
    fresh_until: SystemTime,
    updated: SystemTime,
    variance: Option<HashBinary>,
    header: ResponseHeader,
}

impl StoredHead {
    fn of(meta: &CacheMeta) -> Self {
        Self {
            fresh_until: meta.fresh_until(),
            updated: meta.updated(),
            variance: meta.variance(),
            header: meta.response_header_copy(),
        }
    }

    fn to_meta(&self) -> CacheMeta {
        let (until, updated) = (self.fresh_until, self.updated);
        let mut meta = CacheMeta::new(until, updated, 0, 0, self.header.clone());
        if let Some(variance) = self.variance {
            meta.set_variance(variance);
        }
        meta
    }

    fn bytes(&self) -> usize {
        self.header.headers.iter().map(|(name, value)| name.as_str().len() + value.len()).sum()
    }
}

/// The storage.
pub struct ResponseStore {
    entries: Cache<HashBinary, Arc<Entry>>,
    tags: CacheTags,
}

impl ResponseStore {
    /// A storage of so many bytes. Responses whose tags were invalidated are not found.
    pub fn new(bytes: u64, tags: CacheTags) -> Self {
        let weigh = |_: &HashBinary, entry: &Arc<Entry>| {
            let bytes = OVERHEAD_BYTES + entry.head.bytes() + entry.body.len();
            u32::try_from(bytes).unwrap_or(u32::MAX)
        };
        let entries = Cache::builder().weigher(weigh).max_capacity(bytes).time_to_live(KEPT_FOR);
        Self { entries: entries.build(), tags }
    }

    /// Stored responses, and their bytes.
    pub fn size(&self) -> (u64, u64) {
        // The numbers are brought up to date by moka's housekeeping alone.
        self.entries.run_pending_tasks();
        (self.entries.entry_count(), self.entries.weighted_size())
    }
}

fn epochs_of(key: &CacheKey) -> TagEpochs {
    key.extensions.get::<TagEpochs>().cloned().unwrap_or_default()
}

#[async_trait]
impl Storage for ResponseStore {
    async fn lookup(
        &'static self,
        key: &CacheKey,
        _: &SpanHandle,
    ) -> Result<Option<(CacheMeta, HitHandler)>> {
        let Some(entry) = self.entries.get(&key.combined_bin()) else { return Ok(None) };
        if !self.tags.are_current(&entry.epochs) {
            self.entries.invalidate(&key.combined_bin());
            return Ok(None);
        }
        let hit = Hit { whole: entry.body.clone(), rest: Some(entry.body.clone()) };
        Ok(Some((entry.head.to_meta(), Box::new(hit))))
    }

    async fn get_miss_handler(
        &'static self,
        key: &CacheKey,
        meta: &CacheMeta,
        _: &SpanHandle,
    ) -> Result<MissHandler> {
        Ok(Box::new(Fill {
            store: self,
            key: key.combined_bin(),
            head: StoredHead::of(meta),
            epochs: epochs_of(key),
            body: BytesMut::new(),
        }))
    }

    async fn purge(
        &'static self,
        target: PurgeTarget<'_>,
        _: PurgeType,
        _: &SpanHandle,
    ) -> Result<PurgeOutcome> {
        let removed = self.entries.remove(&target.key().combined_bin());
        Ok(removed.map_or(PurgeOutcome::NotFound, |_| PurgeOutcome::Purged(None)))
    }

    async fn update_meta(
        &'static self,
        key: &CacheKey,
        meta: &CacheMeta,
        _: &SpanHandle,
    ) -> Result<bool> {
        let bin = key.combined_bin();
        let Some(entry) = self.entries.get(&bin) else { return Ok(false) };
        let (head, epochs) = (StoredHead::of(meta), epochs_of(key));
        self.entries.insert(bin, Arc::new(Entry { head, body: entry.body.clone(), epochs }));
        Ok(true)
    }

    fn as_any(&self) -> &(dyn Any + Send + Sync + 'static) {
        self
    }
}

/// A stored response's body while it is sent.
struct Hit {
    whole: Bytes,
    rest: Option<Bytes>,
}

#[async_trait]
impl HandleHit for Hit {
    async fn read_body(&mut self) -> Result<Option<Bytes>> {
        Ok(self.rest.take().filter(|rest| !rest.is_empty()))
    }

    async fn finish(
        self: Box<Self>,
        _: &'static (dyn Storage + Sync),
        _: &CacheKey,
        _: &SpanHandle,
    ) -> Result<()> {
        Ok(())
    }

    fn can_seek(&self) -> bool {
        true
    }

    fn seek(&mut self, start: usize, end: Option<usize>) -> Result<()> {
        let end = end.unwrap_or(self.whole.len()).min(self.whole.len());
        if start >= end {
            return Error::e_explain(ErrorType::InternalError, "a range outside of the body");
        }
        self.rest = Some(self.whole.slice(start..end));
        Ok(())
    }

    fn as_any(&self) -> &(dyn Any + Send + Sync) {
        self
    }

    fn as_any_mut(&mut self) -> &mut (dyn Any + Send + Sync) {
        self
    }
}

/// A response that is arriving. It is stored when it is complete, and forgotten when it is not.
struct Fill {
    store: &'static ResponseStore,
    key: HashBinary,
    head: StoredHead,
    epochs: TagEpochs,
    body: BytesMut,
}

#[async_trait]
impl HandleMiss for Fill {
    async fn write_body(&mut self, data: Bytes, _: bool) -> Result<()> {
        self.body.extend_from_slice(&data);
        Ok(())
    }

    async fn finish(self: Box<Self>) -> Result<MissFinishType> {
        let Self { store, key, head, epochs, body } = *self;
        let body = body.freeze();
        let bytes = body.len();
        store.entries.insert(key, Arc::new(Entry { head, body, epochs }));
        Ok(MissFinishType::Created(bytes))
    }
}
