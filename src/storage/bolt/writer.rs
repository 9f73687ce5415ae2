//! Writing a file from its first page to its last, then its metas.

use std::{
    collections::BTreeMap,
    fs::{File, OpenOptions},
    io::{self, BufWriter, Write},
    mem,
    os::unix::fs::{FileExt, OpenOptionsExt},
    path::Path,
};

use super::{
    Error, MAX_BUCKETS, MAX_KEY_LEN, MAX_VALUE_LEN,
    page::{
        BUCKET_FLAG, BranchElement, BucketHeader, ELEMENT_LEN, FIRST_PAGE, HEADER_LEN, Header,
        Kind, LeafElement, Meta,
    },
};

const PAGE_SIZE: usize = 4096;
const BUFFER_LEN: usize = 256 << 10;

/// The fewest children of a branch page that bbolt leaves as it is.
const MIN_CHILDREN: usize = 2;

/// What a page may keep allocated after a large item has passed through it.
const KEPT_CAPACITY: usize = 1 << 20;

/// Writes a file with pages of 4096 bytes.
///
/// Buckets come one after the other, in any order; the keys of a bucket come in
/// ascending order. A page is written when it is full, so memory is needed for
/// one page per level of the present bucket, for its largest item and for the
/// names of the buckets: well below 1 MiB plus that item, whatever the size of
/// the file.
///
/// Until [`finish`](Self::finish) the file has no valid meta page: what a crash
/// or an error leaves is refused by every reader.
#[derive(Debug)]
pub struct Writer {
    output: Output,
    buckets: BTreeMap<Vec<u8>, u64>,
    open: Option<OpenBucket>,
}

#[derive(Debug)]
struct OpenBucket {
    name: Vec<u8>,
    last_key: Vec<u8>,
    tree: Tree,
}

impl Writer {
    /// Begins the file `path`, which must not exist yet, readable for its owner
    /// alone.
    ///
    /// # Errors
    ///
    /// [`Error::Io`] if it exists or cannot be created.
    pub fn create(path: &Path) -> Result<Self, Error> {
        let file =
            OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(path);
        Self::new(file.map_err(|cause| Error::Io(format!("create {}", path.display()), cause))?)
    }

    /// Begins in `file`, which must be empty and open for writing.
    ///
    /// # Errors
    ///
    /// [`Error::Refused`] if it is not empty, [`Error::Io`] if the disk refuses.
    pub fn new(file: File) -> Result<Self, Error> {
        if file.metadata().map_err(write_failed)?.len() != 0 {
            return Err(Error::Refused("a snapshot must begin in an empty file".into()));
        }
        Ok(Self { output: Output::new(file)?, buckets: BTreeMap::new(), open: None })
    }

    /// Ends the present bucket and begins the bucket `name`, at first empty.
    ///
    /// # Errors
    ///
    /// [`Error::Refused`] if `name` is empty, longer than [`MAX_KEY_LEN`] or
    /// taken, or for more than [`MAX_BUCKETS`] buckets; [`Error::Io`] if the disk
    /// refuses, after which the file cannot be finished.
    pub fn bucket(&mut self, name: &[u8]) -> Result<(), Error> {
        check_key("the name of a bucket", name)?;
        let is_open = self.open.as_ref().is_some_and(|open| open.name == name);
        if is_open || self.buckets.contains_key(name) {
            return Err(Error::Refused(format!("bucket {} exists already", shown(name))));
        }
        if self.buckets.len() + usize::from(self.open.is_some()) >= MAX_BUCKETS {
            return Err(Error::Refused(format!("a file has at most {MAX_BUCKETS} buckets")));
        }
        self.end_bucket()?;
        let tree = Tree::default();
        self.open = Some(OpenBucket { name: name.to_vec(), last_key: Vec::new(), tree });
        Ok(())
    }

    /// Appends `key` with `value` to the present bucket.
    ///
    /// # Errors
    ///
    /// [`Error::Refused`] if no bucket has begun, if `key` is empty, longer than
    /// [`MAX_KEY_LEN`] or not above the key before it, or if `value` is longer than
    /// [`MAX_VALUE_LEN`]; [`Error::Io`] if the disk refuses, after which the file
    /// cannot be finished.
    pub fn put(&mut self, key: &[u8], value: &[u8]) -> Result<(), Error> {
        let Some(open) = &mut self.open else {
            return Err(Error::Refused("a key needs a bucket to be put into".into()));
        };
        check_key("a key", key)?;
        if value.len() > MAX_VALUE_LEN {
            let (key, len) = (shown(key), value.len());
            let limit = format!("at most {MAX_VALUE_LEN} are possible");
            return Err(Error::Refused(format!("the value of {key} has {len} bytes; {limit}")));
        }
        if key <= open.last_key.as_slice() {
            let (key, last) = (shown(key), shown(&open.last_key));
            return Err(Error::Refused(format!("key {key} comes after {last}: not ascending")));
        }
        open.tree.put(&mut self.output, 0, key, value)?;
        open.last_key.clear();
        open.last_key.extend_from_slice(key);
        Ok(())
    }

    /// Ends the file and makes it durable. Gives it back with its length in
    /// bytes, a multiple of 4096. The directory that it stands in is not synced.
    ///
    /// # Errors
    ///
    /// [`Error::Io`] if the disk refuses or has refused before.
    pub fn finish(mut self) -> Result<(File, u64), Error> {
        self.end_bucket()?;
        let mut tree = Tree::default();
        for (name, root) in &self.buckets {
            let value = BucketHeader { root: *root }.encode();
            tree.put(&mut self.output, BUCKET_FLAG, name, &value)?;
        }
        let root = tree.finish(&mut self.output)?;
        let freelist = self.output.page(Kind::Freelist, 0, &[])?;
        self.output.finish(root, freelist)
    }

    fn end_bucket(&mut self) -> Result<(), Error> {
        if let Some(OpenBucket { name, tree, .. }) = self.open.take() {
            let root = tree.finish(&mut self.output)?;
            self.buckets.insert(name, root);
        }
        Ok(())
    }
}

fn check_key(what: &str, key: &[u8]) -> Result<(), Error> {
    match key.len() {
        0 => Err(Error::Refused(format!("{what} must not be empty"))),
        1..=MAX_KEY_LEN => Ok(()),
        len => {
            let text = format!("{what} has {len} bytes; at most {MAX_KEY_LEN} are possible");
            Err(Error::Refused(text))
        }
    }
}

/// The beginning of a key or name, for a message.
fn shown(key: &[u8]) -> String {
    format!("'{}'", key.get(..64).unwrap_or(key).escape_ascii())
}

fn write_failed(cause: io::Error) -> Error {
    Error::Io("write the snapshot file".into(), cause)
}

/// The file, to which pages are appended.
#[derive(Debug)]
struct Output {
    file: BufWriter<File>,
    next_page: u64,
    /// A write has failed, so that pages are missing.
    failed: bool,
}

impl Output {
    fn new(file: File) -> Result<Self, Error> {
        let file = BufWriter::with_capacity(BUFFER_LEN, file);
        let mut output = Self { file, next_page: FIRST_PAGE, failed: false };
        // The place of the metas.
        for _ in 0..FIRST_PAGE {
            output.write(&[0; PAGE_SIZE])?;
        }
        Ok(output)
    }

    fn check_whole(&self) -> Result<(), Error> {
        if self.failed {
            return Err(write_failed(io::Error::other("an earlier write failed")));
        }
        Ok(())
    }

    fn write(&mut self, bytes: &[u8]) -> Result<(), Error> {
        self.check_whole()?;
        self.file.write_all(bytes).map_err(|cause| {
            self.failed = true;
            write_failed(cause)
        })
    }

    /// Appends a page with `count` elements and gives its number.
    fn page(&mut self, kind: Kind, count: usize, parts: &[&[u8]]) -> Result<u64, Error> {
        let len = HEADER_LEN + parts.iter().map(|part| part.len()).sum::<usize>();
        let pages = len.div_ceil(PAGE_SIZE);
        let (Ok(count), Ok(overflow)) = (u16::try_from(count), u32::try_from(pages - 1)) else {
            return Err(Error::Refused("a page is larger than its header can say".into()));
        };
        let id = self.next_page;
        self.write(&Header { id, kind: Some(kind), count, overflow }.encode())?;
        for part in parts {
            self.write(part)?;
        }
        self.write(&[0; PAGE_SIZE][..pages * PAGE_SIZE - len])?;
        self.next_page += pages as u64;
        Ok(id)
    }

    /// Puts the metas into their place, once all other pages are durable.
    fn finish(self, root: u64, freelist: u64) -> Result<(File, u64), Error> {
        self.check_whole()?;
        let file = self.file.into_inner().map_err(|error| write_failed(error.into_error()))?;
        file.sync_all().map_err(write_failed)?;
        for txid in 0..FIRST_PAGE {
            let header = Header { id: txid, kind: Some(Kind::Meta), count: 0, overflow: 0 };
            let (page_size, high_water) = (PAGE_SIZE as u32, self.next_page);
            let meta = Meta { page_size, root, freelist, high_water, txid };
            let bytes = [header.encode(), meta.encode()].concat();
            file.write_all_at(&bytes, txid * PAGE_SIZE as u64).map_err(write_failed)?;
        }
        file.sync_all().map_err(write_failed)?;
        Ok((file, self.next_page * PAGE_SIZE as u64))
    }
}

/// A page that has been written, and the first key in it or below it.
#[derive(Debug)]
struct Child {
    first_key: Vec<u8>,
    id: u64,
}

/// A B+ tree that grows at its right edge: of every level the one page that is
/// not full yet.
#[derive(Debug, Default)]
struct Tree {
    leaf: Leaf,
    /// From the lowest level upwards.
    branches: Vec<Branch>,
}

impl Tree {
    fn put(
        &mut self,
        output: &mut Output,
        flags: u32,
        key: &[u8],
        value: &[u8],
    ) -> Result<(), Error> {
        if !self.leaf.has_room(key.len() + value.len()) {
            let child = self.leaf.write(output)?;
            self.add(output, 0, child)?;
        }
        self.leaf.put(flags, key, value);
        Ok(())
    }

    /// Adds a page to the branches from `level` upwards.
    fn add(&mut self, output: &mut Output, level: usize, child: Child) -> Result<(), Error> {
        let mut rising = Some(child);
        for level in level.. {
            let Some(child) = rising else { break };
            if level == self.branches.len() {
                self.branches.push(Branch::default());
            }
            let branch = &mut self.branches[level];
            rising = if branch.has_room(child.first_key.len()) {
                None
            } else {
                Some(branch.write_but_last(output)?)
            };
            branch.push(child);
        }
        Ok(())
    }

    /// Writes what remains and gives the page of the root.
    ///
    /// A branch exists only above pages that were written, and the remaining
    /// page of the level below is added to it here, so none has a single child.
    fn finish(mut self, output: &mut Output) -> Result<u64, Error> {
        let mut child = self.leaf.write(output)?;
        let mut level = 0;
        while level < self.branches.len() {
            self.add(output, level, child)?;
            child = self.branches[level].write_first(output, usize::MAX)?;
            level += 1;
        }
        Ok(child.id)
    }
}

/// A leaf page that is not written yet.
#[derive(Debug, Default)]
struct Leaf {
    /// Flags, length of the key, length of the value.
    items: Vec<(u32, usize, usize)>,
    /// Every key with its value behind it.
    data: Vec<u8>,
}

impl Leaf {
    /// Whether an item of `len` bytes fits. It always does on an empty page,
    /// which then overflows.
    fn has_room(&self, len: usize) -> bool {
        let elements = (self.items.len() + 1) * ELEMENT_LEN;
        self.items.is_empty() || HEADER_LEN + elements + self.data.len() + len <= PAGE_SIZE
    }

    fn put(&mut self, flags: u32, key: &[u8], value: &[u8]) {
        self.items.push((flags, key.len(), value.len()));
        self.data.extend_from_slice(key);
        self.data.extend_from_slice(value);
    }

    fn write(&mut self, output: &mut Output) -> Result<Child, Error> {
        let mut elements = Vec::with_capacity(self.items.len() * ELEMENT_LEN);
        let mut data_at = 0;
        for (at, (flags, key_len, value_len)) in self.items.iter().copied().enumerate() {
            // One page and one item, so all of these fit.
            let pos = ((self.items.len() - at) * ELEMENT_LEN + data_at) as u32;
            let (key_len, value_len) = (key_len as u32, value_len as u32);
            LeafElement { flags, pos, key_len, value_len }.encode(&mut elements);
            data_at += (key_len + value_len) as usize;
        }
        let id = output.page(Kind::Leaf, self.items.len(), &[&elements, &self.data])?;
        let key_len = self.items.first().map_or(0, |(_, key_len, _)| *key_len);
        let first_key = self.data[..key_len].to_vec();
        self.items.clear();
        self.data.clear();
        self.data.shrink_to(KEPT_CAPACITY);
        Ok(Child { first_key, id })
    }
}

/// A branch page that is not written yet.
#[derive(Debug, Default)]
struct Branch {
    children: Vec<Child>,
    /// Length of all keys.
    keys_len: usize,
}

impl Branch {
    /// Whether a child with a key of `key_len` bytes fits. A page with long keys
    /// overflows rather than to have fewer children than [`MIN_CHILDREN`] when
    /// its last one moves on.
    fn has_room(&self, key_len: usize) -> bool {
        let elements = (self.children.len() + 1) * ELEMENT_LEN;
        self.children.len() <= MIN_CHILDREN
            || HEADER_LEN + elements + self.keys_len + key_len <= PAGE_SIZE
    }

    fn push(&mut self, child: Child) {
        self.keys_len += child.first_key.len();
        self.children.push(child);
    }

    /// Writes a page and keeps its last child, so that the page that follows has
    /// [`MIN_CHILDREN`] with the next one.
    fn write_but_last(&mut self, output: &mut Output) -> Result<Child, Error> {
        self.write_first(output, self.children.len().saturating_sub(1))
    }

    /// Writes a page with the first `count` children and keeps the others.
    fn write_first(&mut self, output: &mut Output, count: usize) -> Result<Child, Error> {
        let rest = self.children.split_off(count.min(self.children.len()));
        let children = mem::replace(&mut self.children, rest);
        self.keys_len = self.children.iter().map(|child| child.first_key.len()).sum();
        let mut elements = Vec::with_capacity(children.len() * ELEMENT_LEN);
        let mut keys = Vec::new();
        for (at, Child { first_key, id }) in children.iter().enumerate() {
            // One page and two keys at most, so both fit.
            let pos = ((children.len() - at) * ELEMENT_LEN + keys.len()) as u32;
            let element = BranchElement { pos, key_len: first_key.len() as u32, child: *id };
            element.encode(&mut elements);
            keys.extend_from_slice(first_key);
        }
        let id = output.page(Kind::Branch, children.len(), &[&elements, &keys])?;
        let first_key = children.into_iter().next().map_or_else(Vec::new, |child| child.first_key);
        Ok(Child { first_key, id })
    }
}
