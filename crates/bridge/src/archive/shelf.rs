//! The objects of one queue in an archive. Their listing is the archive's whole state.

use std::collections::BTreeMap;
use std::io::Write;

use bytes::Bytes;
use chronfs::queue::SegmentBlocks;
use futures_util::TryStreamExt as _;
use object_store::path::Path;

use super::name::{self, Kind, SegmentName};
use super::pack::{Contents, FRAME_END, FRAME_START, Unpacker, Unpacking};
use super::store::{Object, Store};
use crate::{Failure, Result};

/// The most that is read of an index: far more than that of the largest segment has.
const MAX_INDEX: u64 = 64 << 20;
/// A segment that can't be compressed takes this much more than its size at most.
const MAX_OVERHEAD: u64 = 8 << 20;

/// An archived segment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Held {
    pub(super) name: SegmentName,
    /// Bytes of its object.
    pub(super) size: u64,
    /// When it was archived, by the store's clock, in ms since the epoch.
    pub(super) modified_ms: i64,
    /// Bytes of its index, if it has one.
    pub(super) index: Option<u64>,
}

/// What is in the directory of a queue.
#[derive(Debug, Clone, Default)]
pub(super) struct Listing {
    /// In the order of their messages.
    pub(super) held: Vec<Held>,
    /// Indexes without a segment: left by a prune that was killed.
    pub(super) orphans: Vec<Object>,
    /// Those that restore or prune.
    pub(super) markers: Vec<(Kind, Object)>,
    /// Objects that are not ours.
    pub(super) strange: Vec<String>,
}

impl Listing {
    fn of(objects: Vec<Object>) -> Self {
        let mut listing = Self::default();
        let (mut segments, mut indexes) = (BTreeMap::new(), BTreeMap::new());
        for object in objects {
            match Kind::parse(&object.name) {
                Some(Kind::Segment(name)) => drop(segments.insert(name, object)),
                Some(Kind::Index(name)) => drop(indexes.insert(name, object)),
                Some(kind) => listing.markers.push((kind, object)),
                None => listing.strange.push(object.name),
            }
        }
        for (name, Object { size, modified_ms, .. }) in segments {
            let index = indexes.remove(&name).map(|index| index.size);
            listing.held.push(Held { name, size, modified_ms, index });
        }
        listing.orphans = indexes.into_values().collect();
        listing
    }

    /// Two archived segments that can't both be of this queue, if there are such.
    pub(super) fn contradiction(&self) -> Option<(SegmentName, SegmentName)> {
        let mut segments = BTreeMap::new();
        let mut before: Option<SegmentName> = None;
        for Held { name, .. } in &self.held {
            let same = segments.insert(name.segment, *name);
            if let Some(other) = same.or(before.filter(|before| before.contradicts(name))) {
                return Some((other, *name));
            }
            before = Some(*name);
        }
        None
    }

    /// The numbers between the first and the last that are in no object: from, to.
    pub(super) fn missing(&self) -> Vec<(u64, u64)> {
        let pairs = self.held.windows(2).map(|pair| (pair[0].name.next_seq, pair[1].name.first_seq));
        pairs.filter(|(end, next)| end < next).map(|(end, next)| (end, next - 1)).collect()
    }
}

/// The directory of a queue in an archive.
#[derive(Debug)]
pub(super) struct Shelf<'a> {
    pub(super) store: &'a Store,
    pub(super) id: u64,
    pub(super) dir: Path,
}

impl<'a> Shelf<'a> {
    pub(super) fn new(store: &'a Store, id: u64) -> Self {
        Self { store, id, dir: store.path(&[name::VERSION, &name::queue_dir(id)]) }
    }

    /// Of the queue with this id, or of the only one at the address.
    pub(super) async fn find(store: &'a Store, id: Option<u64>) -> Result<Self> {
        let root = store.shown(&store.path(&[]));
        let ids = queues(store).await?;
        match (id, &ids[..]) {
            (Some(id), _) if ids.contains(&id) => Ok(Self::new(store, id)),
            (Some(id), _) => Err(Failure::Config(format!("{root} has nothing of a queue {}", name::queue_dir(id)))),
            (None, [id]) => Ok(Self::new(store, *id)),
            (None, []) => Err(store.nothing()),
            (None, several) => {
                let several: Vec<_> = several.iter().map(|&id| name::queue_dir(id)).collect();
                Err(Failure::Config(format!("{root} has several queues: choose one by --id: {}", several.join(", "))))
            }
        }
    }

    /// Everything that is archived.
    pub(super) async fn list(&self) -> Result<Listing> {
        Ok(Listing::of(self.store.list(&self.dir, "").await?))
    }

    /// Everything that was archived at one time, though segments may be added while it is listed: a store lists objects
    /// in any order, and has missed the older one of two then. What is missing between others is missing.
    #[cfg(feature = "mount")]
    pub(super) async fn list_at_once(&self) -> Result<Listing> {
        let mut listing = self.list().await?;
        if let (false, Some(last)) = (listing.missing().is_empty(), listing.held.last().map(|held| held.name)) {
            // They are added in order: everything before this one is there now.
            listing = self.list().await?;
            listing.held.retain(|held| held.name <= last);
        }
        Ok(listing)
    }

    /// The segments that start at a number or after it.
    pub(super) async fn list_from(&self, seq: u64) -> Result<Listing> {
        Ok(Listing::of(self.store.list(&self.dir, &format!("{seq:020}")).await?))
    }

    pub(super) fn path(&self, object: &str) -> Path {
        self.dir.clone().join(object)
    }

    pub(super) fn shown(&self, object: &str) -> String {
        self.store.shown(&self.path(object))
    }

    /// An object that is not what it must be.
    pub(super) fn bad(&self, object: &str, what: &str) -> Failure {
        Failure::Refused(format!("{}: {what}", self.shown(object)))
    }

    /// What the object of a segment says that it holds.
    pub(super) async fn contents(&self, held: &Held) -> Result<Contents> {
        let (object, size) = (held.name.object(), held.size);
        if size < FRAME_START {
            return Err(self.bad(&object, &format!("it is cut short: it has {size} bytes")));
        }
        let path = self.path(&object);
        let start = self.store.range(&path, 0..FRAME_START).await?;
        let end = self.store.range(&path, size - FRAME_END..size).await?;
        Contents::of(&start, &end).map_err(|what| self.bad(&object, &what))
    }

    /// Unpacks the object of a segment into a file.
    pub(super) async fn unpack<W: Write>(&self, held: &Held, file: W, shown: &std::path::Path) -> Result<W> {
        let object = held.name.object();
        let failed = |error| match error {
            Unpacking::Damaged(what) => self.bad(&object, &what),
            Unpacking::Io(error) if error.kind() == std::io::ErrorKind::InvalidData => {
                self.bad(&object, &error.to_string())
            }
            Unpacking::Io(error) => Failure::Again(format!("{}: cannot write it: {error}", shown.display())),
        };
        if held.size > u64::from(chronfs::queue::layout::MAX_SEGMENT_SIZE) + MAX_OVERHEAD {
            return Err(self.bad(&object, &format!("it has {} bytes: no segment takes that many", held.size)));
        }
        let path = self.path(&object);
        let mut pieces = self.store.read(&path).await?;
        let mut unpacker = Unpacker::new(file).map_err(|error| failed(Unpacking::Io(error)))?;
        while let Some(piece) = pieces.try_next().await? {
            unpacker.take(&piece).map_err(failed)?;
        }
        unpacker.finish().map_err(failed)
    }

    /// The blocks at the start of a segment, of which only that much is read.
    pub(super) async fn blocks(&self, held: &Held) -> Result<SegmentBlocks> {
        let start = self.start(held, SegmentBlocks::LEN).await?;
        let blocks = SegmentBlocks::parse(&start);
        let blocks = blocks.ok_or_else(|| self.bad(&held.name.object(), "it does not hold a segment"))?;
        self.check(held, &blocks).map(|()| blocks)
    }

    /// The first bytes of a segment, `len` of them or fewer; only the start of its object is read.
    pub(super) async fn start(&self, held: &Held, len: usize) -> Result<Vec<u8>> {
        let object = held.name.object();
        let path = self.path(&object);
        // More than the first block of a frame takes.
        let bytes = self.store.range(&path, 0..held.size.min(160 << 10)).await?;
        let mut start = Start { bytes: Vec::new(), len };
        let unpacked = Unpacker::new(&mut start).map_err(Unpacking::Io).and_then(|mut unpacker| unpacker.take(&bytes));
        if let Err(Unpacking::Damaged(what)) = unpacked {
            return Err(self.bad(&object, &what));
        }
        Ok(start.bytes)
    }

    /// Checks that a segment is the one that its object's name says.
    pub(super) fn check(&self, held: &Held, blocks: &SegmentBlocks) -> Result<()> {
        let is_it = blocks.queue_id == self.id && SegmentName::of(blocks, held.name.next_seq) == held.name;
        if is_it {
            return Ok(());
        }
        let found = SegmentName::of(blocks, held.name.next_seq);
        let found = format!("{}/{}", name::queue_dir(blocks.queue_id), found.object());
        Err(self.bad(&held.name.object(), &format!("it holds the segment {found}")))
    }

    /// The index of a segment, if it has one that is sound and of that segment.
    pub(super) async fn index(&self, held: &Held, blocks: &SegmentBlocks) -> Result<Option<Bytes>> {
        let Some(size) = held.index else { return Ok(None) };
        let object = held.name.index();
        let bytes = self.index_bytes(held, size).await?;
        if chronfs::view::segment_of_index(&bytes) != Some(*blocks) {
            return Err(self.bad(&object, "it is damaged, or the index of another segment"));
        }
        Ok(Some(bytes))
    }

    /// The object of an index that has this size, unverified.
    pub(super) async fn index_bytes(&self, held: &Held, size: u64) -> Result<Bytes> {
        let object = held.name.index();
        if size == 0 || size > MAX_INDEX {
            return Err(self.bad(&object, &format!("it has {size} bytes: no index has that many")));
        }
        self.store.range(&self.path(&object), 0..size).await
    }
}

/// The ids of the queues at an address.
pub(super) async fn queues(store: &Store) -> Result<Vec<u64>> {
    let mut ids: Vec<u64> = store
        .directories(&store.path(&[name::VERSION]))
        .await?
        .iter()
        .filter_map(|dir| name::parse_queue_dir(dir))
        .collect();
    ids.sort_unstable();
    Ok(ids)
}

/// Keeps the first bytes of what is written, `len` of them.
struct Start {
    bytes: Vec<u8>,
    len: usize,
}

impl Write for Start {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let wanted = self.len.saturating_sub(self.bytes.len());
        self.bytes.extend_from_slice(&bytes[..wanted.min(bytes.len())]);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}
