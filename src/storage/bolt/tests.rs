//! What is written is read; what is damaged is an error and nothing worse.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    sync::OnceLock,
};

use bytes::Bytes;
use proptest::{collection::vec, prelude::*, sample::Index};
use sha2::{Digest, Sha256};
use tempfile::TempDir;

use super::{
    Error, MAX_BUCKETS, MAX_KEY_LEN, MAX_VALUE_LEN, Pair, Reader, Trailer, Writer,
    page::{BranchElement, BucketHeader, Header, Kind, LeafElement, Meta},
    trailing_sha256,
};

type Content = BTreeMap<Vec<u8>, BTreeMap<Vec<u8>, Vec<u8>>>;

struct Place {
    path: PathBuf,
    _dir: TempDir,
}

fn place() -> Place {
    let dir = TempDir::new().unwrap();
    Place { path: dir.path().join("snap.db"), _dir: dir }
}

/// Writes the buckets in descending order, which is as good as any.
fn write(path: &Path, content: &Content) -> u64 {
    let mut writer = Writer::create(path).unwrap();
    for (name, pairs) in content.iter().rev() {
        writer.bucket(name).unwrap();
        for (key, value) in pairs {
            writer.put(key, value).unwrap();
        }
    }
    let (file, len) = writer.finish().unwrap();
    assert_eq!(file.metadata().unwrap().len(), len);
    assert_eq!(len % 4096, 0);
    len
}

fn read(path: &Path) -> Result<Content, Error> {
    let reader = Reader::open(path)?;
    let mut content = Content::new();
    for name in reader.buckets()? {
        let pairs = reader.iter(&name)?.unwrap();
        let pairs: Result<_, Error> =
            pairs.map(|pair| pair.map(|(key, value)| (key.to_vec(), value.to_vec()))).collect();
        content.insert(name.to_vec(), pairs?);
    }
    Ok(content)
}

fn assert_round_trip(content: &Content) {
    let place = place();
    write(&place.path, content);
    assert!(read(&place.path).unwrap() == *content, "another content was read than written");
}

fn one_bucket(pairs: impl IntoIterator<Item = (Vec<u8>, Vec<u8>)>) -> Content {
    Content::from([(b"key".to_vec(), pairs.into_iter().collect())])
}

/// Branch levels above the leaves of the bucket "key".
fn levels(path: &Path) -> usize {
    let reader = Reader::open(path).unwrap();
    let mut pairs = reader.iter(b"key").unwrap().unwrap();
    pairs.next().unwrap().unwrap();
    pairs.frames.len() - 1
}

#[test]
fn a_file_without_buckets_is_a_file() {
    assert_round_trip(&Content::new());
}

#[test]
fn an_empty_bucket_is_a_bucket() {
    let names = [&b"alarm"[..], b"auth", b"key", b"meta"];
    assert_round_trip(&names.map(|name| (name.to_vec(), BTreeMap::new())).into());
}

#[test]
fn a_bucket_that_is_not_there_is_none() {
    let place = place();
    write(&place.path, &one_bucket([(b"a".to_vec(), b"1".to_vec())]));
    assert!(Reader::open(&place.path).unwrap().iter(b"lease").unwrap().is_none());
}

#[test]
fn many_keys_take_several_levels() {
    let place = place();
    let key = |n: u64| [&n.to_be_bytes()[..], b"_", &[0; 8]].concat();
    let content = one_bucket((0..70_000).map(|n| (key(n), vec![n as u8; 100])));
    write(&place.path, &content);
    assert!(read(&place.path).unwrap() == content);
    assert_eq!(levels(&place.path), 2);
}

#[test]
fn long_keys_make_a_deep_tree_of_pages_that_overflow() {
    let place = place();
    let key = |n: u16| [&n.to_be_bytes()[..], &vec![b'k'; MAX_KEY_LEN - 2]].concat();
    let content = one_bucket((0..100).map(|n| (key(n), Vec::new())));
    write(&place.path, &content);
    assert!(read(&place.path).unwrap() == content);
    // Three of these keys are more than a page takes, so two children make one.
    assert!(levels(&place.path) >= 5, "{} levels", levels(&place.path));
}

#[test]
fn values_of_every_size_around_a_page_are_read_back() {
    let sizes = (0..300).chain(3_900..4_120).chain([65_536, 262_100, 262_144, 3 << 20]);
    let pairs = sizes.enumerate().map(|(n, size)| {
        (format!("{n:06}").into_bytes(), (0..size).map(|at| (at * 7 + n) as u8).collect())
    });
    assert_round_trip(&one_bucket(pairs));
}

#[test]
fn as_many_buckets_as_possible_are_read_back() {
    let names = (0..MAX_BUCKETS).map(|n| format!("bucket {n:05}").into_bytes());
    assert_round_trip(&names.map(|name| (name, BTreeMap::new())).collect());
}

fn assert_refused(result: Result<(), Error>, why: &str) {
    match result {
        Err(Error::Refused(text)) => assert!(text.contains(why), "{text}"),
        other => panic!("{why}: {other:?}"),
    }
}

#[test]
fn what_the_format_does_not_allow_is_refused_and_changes_nothing() {
    let place = place();
    let mut writer = Writer::create(&place.path).unwrap();
    assert_refused(writer.put(b"a", b""), "a key needs a bucket");
    assert_refused(writer.bucket(b""), "must not be empty");
    writer.bucket(b"key").unwrap();
    assert_refused(writer.bucket(b"key"), "bucket 'key' exists already");
    assert_refused(writer.put(b"", b"1"), "must not be empty");
    writer.put(b"b", b"1").unwrap();
    assert_refused(writer.put(b"b", b"2"), "key 'b' comes after 'b'");
    assert_refused(writer.put(b"a\xff", b"2"), "key 'a\\xff' comes after 'b'");
    assert_refused(writer.put(&[b'c'; MAX_KEY_LEN + 1], b""), "a key has 32769 bytes");
    assert_refused(writer.put(b"c", &vec![0; MAX_VALUE_LEN + 1]), "has 67108865 bytes");
    writer.bucket(b"alarm").unwrap();
    assert_refused(writer.bucket(b"key"), "bucket 'key' exists already");
    writer.put(b"a", b"of another bucket").unwrap();
    for n in 2..MAX_BUCKETS {
        writer.bucket(&n.to_be_bytes()).unwrap();
    }
    assert_refused(writer.bucket(b"zzz"), "at most 1024 buckets");
    writer.finish().unwrap();

    let content = read(&place.path).unwrap();
    assert_eq!(content[&b"key"[..]], BTreeMap::from([(b"b".to_vec(), b"1".to_vec())]));
    assert_eq!(content[&b"alarm"[..]][&b"a"[..]], b"of another bucket");
    assert_eq!(content.len(), MAX_BUCKETS);
}

#[test]
fn a_file_with_content_is_not_overwritten() {
    let place = place();
    fs::write(&place.path, b"precious").unwrap();
    assert!(matches!(Writer::create(&place.path), Err(Error::Io(..))));
    let file = fs::OpenOptions::new().write(true).open(&place.path).unwrap();
    assert!(matches!(Writer::new(file), Err(Error::Refused(_))));
    assert_eq!(fs::read(&place.path).unwrap(), b"precious");
}

#[test]
fn a_write_that_fails_prevents_the_finish() {
    let Ok(full) = fs::OpenOptions::new().write(true).open("/dev/full") else {
        println!("SKIPPED: there is no /dev/full");
        return;
    };
    let mut writer = Writer::new(full).unwrap();
    writer.bucket(b"key").unwrap();
    writer.put(b"a", &vec![0; 1 << 20]).unwrap();
    assert!(matches!(writer.put(b"b", b""), Err(Error::Io(..))));
    assert!(matches!(writer.put(b"c", b""), Ok(()) | Err(Error::Io(..))));
    assert!(matches!(writer.finish(), Err(Error::Io(..))));
}

#[test]
fn an_unfinished_file_is_refused() {
    let place = place();
    let mut writer = Writer::create(&place.path).unwrap();
    writer.bucket(b"key").unwrap();
    writer.put(b"a", &[0; 9000]).unwrap();
    drop(writer);
    let error = Reader::open(&place.path).unwrap_err();
    assert!(error.to_string().ends_with("it does not begin as a database of bbolt"), "{error}");
}

#[test]
fn a_file_cut_short_is_refused() {
    let place = place();
    let len = write(&place.path, &one_bucket([(b"a".to_vec(), vec![0; 9000])]));
    let bytes = fs::read(&place.path).unwrap();
    for cut in [0, 15, 79, 80, 4096, 8192, len as usize - 1] {
        fs::write(&place.path, &bytes[..cut]).unwrap();
        assert!(matches!(Reader::open(&place.path), Err(Error::Damaged(_))), "{cut} bytes");
    }
    assert!(matches!(Reader::open(Path::new("/nonexistent/file")), Err(Error::Io(..))));
}

#[test]
fn a_trailing_sha256_is_told_right_from_wrong() {
    let place = place();
    let content = one_bucket([(b"a".to_vec(), vec![1; 300_000])]);
    write(&place.path, &content);
    assert_eq!(trailing_sha256(&place.path).unwrap(), Trailer::Absent);
    let mut bytes = fs::read(&place.path).unwrap();
    bytes.extend_from_slice(&Sha256::digest(&bytes));
    fs::write(&place.path, &bytes).unwrap();
    assert_eq!(trailing_sha256(&place.path).unwrap(), Trailer::Right);
    assert!(read(&place.path).unwrap() == content);
    bytes[200_000] ^= 1;
    fs::write(&place.path, &bytes).unwrap();
    assert_eq!(trailing_sha256(&place.path).unwrap(), Trailer::Wrong);
    assert!(matches!(trailing_sha256(Path::new("/nonexistent/file")), Err(Error::Io(..))));
}

/// A file made by hand, page by page, with metas that point at page 2.
struct Raw {
    page_size: usize,
    /// From page 2 on.
    pages: Vec<Vec<u8>>,
}

fn header(kind: Kind, id: u64, count: u16) -> Vec<u8> {
    Header { id, kind: Some(kind), count, overflow: 0 }.encode()
}

fn leaf(id: u64, items: &[(u32, &[u8], &[u8])]) -> Vec<u8> {
    let mut page = header(Kind::Leaf, id, items.len() as u16);
    let mut data = Vec::new();
    for (at, (flags, key, value)) in items.iter().enumerate() {
        let pos = ((items.len() - at) * 16 + data.len()) as u32;
        let (key_len, value_len) = (key.len() as u32, value.len() as u32);
        LeafElement { flags: *flags, pos, key_len, value_len }.encode(&mut page);
        data.extend_from_slice(&[*key, *value].concat());
    }
    [page, data].concat()
}

fn branch(id: u64, children: &[(&[u8], u64)]) -> Vec<u8> {
    let mut page = header(Kind::Branch, id, children.len() as u16);
    let mut keys = Vec::new();
    for (at, (key, child)) in children.iter().enumerate() {
        let pos = ((children.len() - at) * 16 + keys.len()) as u32;
        BranchElement { pos, key_len: key.len() as u32, child: *child }.encode(&mut page);
        keys.extend_from_slice(key);
    }
    [page, keys].concat()
}

/// The tree of buckets, at page 2, with one bucket rooted at page 3.
fn root() -> Vec<u8> {
    leaf(2, &[(1, b"key", &BucketHeader { root: 3 }.encode())])
}

impl Raw {
    fn meta(&self, id: u64, root: u64) -> Vec<u8> {
        let (page_size, high_water) = (self.page_size as u32, 2 + self.pages.len() as u64);
        let meta = Meta { page_size, root, freelist: u64::MAX, high_water, txid: 7 + id };
        [header(Kind::Meta, id, 0), meta.encode()].concat()
    }

    fn bytes(&self, metas: [Vec<u8>; 2]) -> Vec<u8> {
        let pages = metas.iter().chain(&self.pages);
        pages.flat_map(|page| [&page[..], &vec![0; self.page_size - page.len()]].concat()).collect()
    }

    fn read(&self) -> Result<Content, Error> {
        let place = place();
        fs::write(&place.path, self.bytes([self.meta(0, 2), self.meta(1, 2)])).unwrap();
        read(&place.path)
    }

    fn assert_damaged(&self, why: &str) {
        match self.read() {
            Err(Error::Damaged(text)) => assert!(text.contains(why), "{text}"),
            other => panic!("{why}: {other:?}"),
        }
    }
}

fn raw(pages: Vec<Vec<u8>>) -> Raw {
    Raw { page_size: 4096, pages }
}

#[test]
fn every_page_size_of_bbolt_is_read_by_either_meta() {
    let content = one_bucket([(b"a".to_vec(), b"1".to_vec())]);
    for page_size in (9..=16).map(|shift| 1 << shift) {
        let raw = Raw { page_size, pages: vec![root(), leaf(3, &[(0, b"a", b"1")])] };
        assert!(raw.read().unwrap() == content);
        for damaged in [0, 1] {
            let place = place();
            let mut metas = [raw.meta(0, 2), raw.meta(1, 2)];
            metas[damaged][20] ^= 1;
            fs::write(&place.path, raw.bytes(metas)).unwrap();
            assert!(read(&place.path).unwrap() == content, "{page_size}");
        }
    }
    let raw = Raw { page_size: 256, pages: vec![root(), leaf(3, &[])] };
    raw.assert_damaged("its page size is none");
}

#[test]
fn the_newer_of_two_valid_metas_holds() {
    let other = leaf(4, &[(1, b"newer", &BucketHeader { root: 3 }.encode())]);
    let raw = raw(vec![root(), leaf(3, &[]), other]);
    let place = place();
    for (roots, name) in [([2, 4], &b"newer"[..]), ([4, 2], b"key")] {
        let bytes = raw.bytes([raw.meta(0, roots[0]), raw.meta(1, roots[1])]);
        fs::write(&place.path, bytes).unwrap();
        assert_eq!(Reader::open(&place.path).unwrap().buckets().unwrap(), [name]);
    }
}

#[test]
fn an_inline_bucket_is_read() {
    let page = leaf(0, &[(0, b"a", b"1"), (0, b"b", b"2")]);
    let value = [BucketHeader { root: 0 }.encode(), page].concat();
    let content = raw(vec![leaf(2, &[(1, b"key", &value)])]).read().unwrap();
    let pairs = [(b"a".to_vec(), b"1".to_vec()), (b"b".to_vec(), b"2".to_vec())];
    assert!(content == one_bucket(pairs));
    let page = leaf(0, &[(0, b"a", b"1"), (0, b"b", &[7; 200])]);
    let cut = [BucketHeader { root: 0 }.encode(), page[..100].to_vec()].concat();
    raw(vec![leaf(2, &[(1, b"key", &cut)])]).assert_damaged("lies outside of the page");
    raw(vec![leaf(2, &[(1, b"key", &cut[..20])])]).assert_damaged("page 0 is neither");
    raw(vec![leaf(2, &[(1, b"key", &cut[..7])])]).assert_damaged("header of a bucket is cut off");
}

#[test]
fn a_bucket_within_a_bucket_is_an_error() {
    let inner = BucketHeader { root: 4 }.encode();
    raw(vec![root(), leaf(3, &[(1, b"a", &inner)]), leaf(4, &[])])
        .assert_damaged("item 0 of page 3 is a bucket within a bucket");
    raw(vec![leaf(2, &[(0, b"a", b"1")])]).assert_damaged("is a key outside of any bucket");
    raw(vec![root(), leaf(3, &[(6, b"a", b"1")])]).assert_damaged("has unknown flags");
}

#[test]
fn a_tree_that_is_none_is_an_error() {
    let leaves = || vec![leaf(4, &[(0, b"a", b"1")]), leaf(5, &[(0, b"c", b"2")])];
    let tree =
        |children: &[(&[u8], u64)]| raw([vec![root(), branch(3, children)], leaves()].concat());
    for keys in [[b"a", b"c"], [b"A", b"b"]] {
        let read = tree(&[(keys[0], 4), (keys[1], 5)]).read().unwrap();
        assert_eq!(read[&b"key"[..]].len(), 2);
    }
    tree(&[(b"a", 4), (b"a", 5)]).assert_damaged("item 1 of page 3 is not above the key");
    tree(&[(b"a", 4), (b"d", 5)]).assert_damaged("item 0 of page 5 is below the key by which");
    tree(&[(b"b", 4), (b"c", 5)]).assert_damaged("item 0 of page 4 is below the key by which");
    tree(&[(b"a", 4), (b"", 5)]).assert_damaged("item 1 of page 3 has a key of 0 bytes");
    tree(&[(b"a", 5), (b"d", 5)]).assert_damaged("item 0 of page 5 is not above the key");
    tree(&[(b"a", 3)]).assert_damaged("page 3 is reached in more than one way");
    tree(&[(b"a", 1)]).assert_damaged("it refers to page 1 of 6");
    tree(&[(b"a", 6)]).assert_damaged("it refers to page 6 of 6");
    tree(&[(b"a", u64::MAX)]).assert_damaged("it refers to page");
    let chain = (3..50).map(|id| branch(id, &[(b"a", id + 1)]));
    let pages = std::iter::once(root()).chain(chain).chain([leaf(50, &[(0, b"a", b"1")])]);
    raw(pages.collect()).assert_damaged("more than 40 levels deep");
    let moved = raw(vec![root(), leaf(4, &[])]);
    moved.assert_damaged("page 3 says that it is page 4");
}

#[test]
fn ways_to_a_page_do_not_multiply() {
    // Two ways at every level, 2^30 in all, to a leaf without items.
    let branches = (3..33).map(|id| branch(id, &[(b"a", id + 1), (b"a", id + 1)]));
    let pages = std::iter::once(root()).chain(branches).chain([leaf(33, &[])]);
    raw(pages.collect()).assert_damaged("is reached in more than one way");
}

#[test]
fn a_page_with_more_items_than_its_first_part_names_is_read() {
    // bbolt splits such pages, but only before they are written.
    let key = |n: u16| n.to_be_bytes();
    let keys: Vec<_> = (0..300).map(key).collect();
    let value = [7; 1000];
    let items: Vec<(u32, &[u8], &[u8])> =
        keys.iter().map(|key| (0, &key[..], &value[..])).collect();
    let mut page = leaf(3, &items);
    let overflow = (page.len() / 4096) as u32;
    page[12..16].copy_from_slice(&overflow.to_le_bytes());
    let parts = page.chunks(4096).map(<[u8]>::to_vec);
    let content = raw(std::iter::once(root()).chain(parts).collect()).read().unwrap();
    assert!(content == one_bucket(keys.iter().map(|key| (key.to_vec(), value.to_vec()))));
}

#[test]
fn items_that_share_bytes_are_an_error() {
    let mut page = header(Kind::Leaf, 3, 2);
    for (pos, value_len) in [(32, 100), (17, 100)] {
        LeafElement { flags: 0, pos, key_len: 1, value_len }.encode(&mut page);
    }
    page.extend_from_slice(b"ab");
    raw(vec![root(), page]).assert_damaged("item 1 of page 3 lies outside of the page or within");
}

#[test]
fn lengths_that_cannot_be_are_an_error() {
    let item = |pos, key_len, value_len| {
        let mut page = header(Kind::Leaf, 3, 1);
        LeafElement { flags: 0, pos, key_len, value_len }.encode(&mut page);
        raw(vec![root(), page])
    };
    item(16, 1, 1 << 27).assert_damaged("has a key of 1 and a value of 134217728 bytes");
    item(16, 0, 1).assert_damaged("has a key of 0");
    item(16, 40_000, 1).assert_damaged("has a key of 40000");
    item(u32::MAX, 1, 1).assert_damaged("lies outside");
    item(16, 1, 4096).assert_damaged("lies outside");
    raw(vec![root(), header(Kind::Leaf, 3, 300)]).assert_damaged("no room for its 300 elements");
    let long = Header { id: 3, kind: Some(Kind::Leaf), count: 0, overflow: 1 };
    raw(vec![root(), long.encode()]).assert_damaged("page 3 overflows behind the end");
}

#[test]
fn more_pages_than_numbers_is_an_error() {
    let raw = raw(vec![root(), leaf(3, &[])]);
    for high_water in [5, u64::MAX / 4096, u64::MAX] {
        let meta = Meta { page_size: 4096, root: 2, freelist: 9, high_water, txid: 1 };
        let bytes = raw.bytes([[header(Kind::Meta, 0, 0), meta.encode()].concat(), Vec::new()]);
        let place = place();
        fs::write(&place.path, bytes).unwrap();
        let error = Reader::open(&place.path).unwrap_err();
        assert!(error.to_string().contains("too few for"), "{error}");
    }
}

#[test]
fn the_first_error_is_the_last_item() {
    let raw = raw(vec![root(), leaf(3, &[(0, b"b", b""), (0, b"a", b""), (0, b"c", b"")])]);
    let place = place();
    fs::write(&place.path, raw.bytes([raw.meta(0, 2), raw.meta(1, 2)])).unwrap();
    let reader = Reader::open(&place.path).unwrap();
    let items: Vec<Result<Pair, Error>> = reader.iter(b"key").unwrap().unwrap().collect();
    assert!(matches!(&items[..], [Ok(_), Err(Error::Damaged(_))]), "{items:?}");
}

fn value() -> impl Strategy<Value = Vec<u8>> {
    let sized = |sizes| vec(any::<u8>(), sizes);
    prop_oneof![6 => sized(0..64), 3 => sized(64..5_000), 1 => sized(5_000..70_000)]
}

fn content() -> impl Strategy<Value = Content> {
    let key = prop_oneof![4 => vec(any::<u8>(), 1..20), 1 => vec(any::<u8>(), 1..3_000)];
    let pairs = proptest::collection::btree_map(key, value(), 0..200);
    proptest::collection::btree_map(vec(any::<u8>(), 1..12), pairs, 0..5)
}

/// A file with every kind of page: branches, overflow, an empty bucket.
fn sound_file() -> &'static [u8] {
    static FILE: OnceLock<Vec<u8>> = OnceLock::new();
    FILE.get_or_init(|| {
        let place = place();
        let mut content = one_bucket((0..400_u32).map(|n| {
            let key = [&n.to_be_bytes()[..], &vec![b'k'; n as usize % 7 * 150]].concat();
            (key, vec![n as u8; if n % 50 == 0 { 20_000 } else { 30 }])
        }));
        content.insert(b"large".to_vec(), [(b"a".to_vec(), vec![1; 300_000])].into());
        content.insert(b"lease".to_vec(), BTreeMap::new());
        write(&place.path, &content);
        fs::read(&place.path).unwrap()
    })
}

/// Walks through all of a file that may be damaged, and checks that the walk
/// gives no more than the file has.
fn assert_bounded(path: &Path) {
    let Ok(reader) = Reader::open(path) else { return };
    let Ok(names) = reader.buckets() else { return };
    let len = fs::metadata(path).unwrap().len();
    for name in names {
        let Ok(Some(mut iter)) = reader.iter(&name) else { continue };
        let mut given = 0;
        for (key, value) in iter.by_ref().map_while(Result::ok) {
            // An element is 16 bytes, and keys and values share none.
            given += 16 + (key.len() + value.len()) as u64;
        }
        assert!(iter.next().is_none(), "an item after the end");
        assert!(given <= len, "{given} bytes of a file of {len}");
    }
}

/// A change of some bytes near the beginning of a page, or anywhere.
fn damage() -> impl Strategy<Value = (Index, Index, bool, Vec<u8>)> {
    (any::<Index>(), any::<Index>(), any::<bool>(), vec(any::<u8>(), 1..9))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn whatever_is_written_is_read(content in content()) {
        assert_round_trip(&content);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1500))]

    #[test]
    fn damage_leads_to_errors_at_worst(changes in vec(damage(), 1..6)) {
        let place = place();
        let mut bytes = sound_file().to_vec();
        for (page, offset, in_elements, change) in changes {
            // The metas stay: their checksum would hide all the rest.
            let page = 2 + page.index(bytes.len() / 4096 - 2);
            let at = page * 4096 + offset.index(if in_elements { 64 } else { 4088 });
            bytes[at..at + change.len()].copy_from_slice(&change);
        }
        fs::write(&place.path, bytes).unwrap();
        assert_bounded(&place.path);
    }

    #[test]
    fn a_page_in_the_place_of_another_leads_to_errors_at_worst(
        moves in vec((any::<Index>(), any::<Index>(), any::<bool>()), 1..4),
    ) {
        let place = place();
        let mut bytes = sound_file().to_vec();
        for (from, to, with_id) in moves {
            let pages = bytes.len() / 4096 - 2;
            let (from, to) = (2 + from.index(pages), 2 + to.index(pages));
            bytes.copy_within(from * 4096..(from + 1) * 4096, to * 4096);
            if !with_id {
                bytes[to * 4096..to * 4096 + 8].copy_from_slice(&(to as u64).to_le_bytes());
            }
        }
        fs::write(&place.path, bytes).unwrap();
        assert_bounded(&place.path);
    }

    #[test]
    fn no_bytes_are_too_wild(
        metas in vec(any::<u8>(), 0..200), at in 0..9_000_usize, cut in any::<Index>(),
    ) {
        let place = place();
        let mut bytes = sound_file().to_vec();
        bytes[at..at + metas.len()].copy_from_slice(&metas);
        bytes.truncate(cut.index(bytes.len() * 4));
        fs::write(&place.path, bytes).unwrap();
        assert_bounded(&place.path);
    }
}

#[test]
fn what_is_given_outlives_its_reader() {
    let place = place();
    write(&place.path, &one_bucket([(b"a".to_vec(), b"1".to_vec())]));
    let pair: Pair = {
        let reader = Reader::open(&place.path).unwrap();
        reader.iter(b"key").unwrap().unwrap().next().unwrap().unwrap()
    };
    assert_eq!(pair, (Bytes::from_static(b"a"), Bytes::from_static(b"1")));
}
