//! The tree against a model: after any sequence of operations it shows what a map of directories and lists of messages
//! would. No kernel: the operations are its requests when a shell creates directories, writes, takes and lists.

mod shell;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::time::{Duration, Instant};

use proptest::prelude::*;

use crate::fs::attr::Kind;
use crate::fs::errno::{Errno, Result};
use crate::fs::tree::inodes::Ino;
use crate::queue::{Error, Queue};
use shell::{Mount, short, split};

/// Where operations happen: in a queue that exists from the start, and in directories that are created and removed.
const DIRS: [&str; 3] = ["q", "b", "b/in"];
const READERS: [&str; 2] = ["alice", "bob"];
/// What a queue's directory shows besides READY and LEASE.
const QUEUE_FILES: &str = "append.bin append.jsonl append.packets append.txt at follow.bin follow.hex follow.jsonl follow.txt log \
    messages messages.bin messages.hex messages.jsonl messages.txt readers segments since status status.json";
const MISSING: Errno = Errno::ENOENT;

#[derive(Debug, Clone, Copy)]
enum Format {
    Txt,
    Jsonl,
    Bin,
}

#[derive(Debug, Clone, Copy)]
enum Target {
    First,
    End,
    Seq(u64),
    Forward(u64),
    Back(u64),
}

/// The first number is an index into `DIRS`, the second, of a reader, into `READERS`.
#[derive(Debug, Clone)]
enum Op {
    Mkdir(usize),
    Rmdir(usize),
    /// `append.*`: payloads of these lengths, split into two writes, the last line with a newline or without.
    Append(usize, Format, Vec<usize>, usize, bool),
    /// By a native writer.
    Native(usize, usize),
    /// Opens `append.txt` of a queue and keeps it open over other operations.
    Hold(usize),
    /// Writes into what is held: a piece of a line, or the end of one.
    Add(usize, bool),
    LetGo,
    /// Opens `follow.txt`. Whatever comes afterwards must be read from it.
    Follow(usize),
    Register(usize, usize),
    Remove(usize, usize),
    Move(usize, usize, Target),
    Take(usize, usize, usize),
    Mark(usize, &'static str),
    Unmark(usize, &'static str),
    /// Removes this many of the oldest sealed segments.
    Retire(usize, usize),
}

fn op() -> impl Strategy<Value = Op> {
    let dir = || prop_oneof![3 => Just(0), 2 => 1..DIRS.len()];
    let reader = || 0..READERS.len();
    let len = || prop_oneof![2 => 0_usize..30, 1 => 15_000_usize..25_000];
    let format = prop_oneof![Just(Format::Txt), Just(Format::Jsonl), Just(Format::Bin)];
    let target = prop_oneof![
        Just(Target::First),
        Just(Target::End),
        (0_u64..12).prop_map(Target::Seq),
        (0_u64..5).prop_map(Target::Forward),
        (0_u64..5).prop_map(Target::Back),
    ];
    let marker = || prop_oneof![Just("READY"), Just("LEASE")];
    prop_oneof![
        2 => (1..DIRS.len()).prop_map(Op::Mkdir),
        1 => dir().prop_map(Op::Rmdir),
        6 => (dir(), format, prop::collection::vec(len(), 0..6), 0_usize..100, any::<bool>())
            .prop_map(|(dir, format, lens, cut, ends)| Op::Append(dir, format, lens, cut, ends)),
        2 => (dir(), len()).prop_map(|(dir, len)| Op::Native(dir, len)),
        2 => dir().prop_map(Op::Hold),
        2 => (0_usize..40, any::<bool>()).prop_map(|(len, ends)| Op::Add(len, ends)),
        1 => Just(Op::LetGo),
        2 => dir().prop_map(Op::Follow),
        3 => (dir(), reader()).prop_map(|(dir, reader)| Op::Register(dir, reader)),
        1 => (dir(), reader()).prop_map(|(dir, reader)| Op::Remove(dir, reader)),
        3 => (dir(), reader(), target).prop_map(|(dir, reader, target)| Op::Move(dir, reader, target)),
        3 => (dir(), reader(), 1_usize..5).prop_map(|(dir, reader, count)| Op::Take(dir, reader, count)),
        1 => (dir(), marker()).prop_map(|(dir, name)| Op::Mark(dir, name)),
        1 => (dir(), marker()).prop_map(|(dir, name)| Op::Unmark(dir, name)),
        3 => (dir(), 1_usize..3).prop_map(|(dir, count)| Op::Retire(dir, count)),
    ]
}

/// What a directory should be.
#[derive(Default)]
struct Model {
    marked: BTreeSet<&'static str>,
    queue: Option<Messages>,
}

/// A queue: every payload that was ever appended, and which of them are retained.
#[derive(Default)]
struct Messages {
    all: Vec<String>,
    /// Sequence number of the first retained message.
    first: u64,
    /// Where each reader is.
    readers: BTreeMap<&'static str, u64>,
    /// Inode of `messages.txt`, and the first message when it was seen.
    seen: Option<(u64, Ino)>,
}

impl Messages {
    fn next(&self) -> u64 {
        self.all.len() as u64 + 1
    }

    fn payload(&self, seq: u64) -> &str {
        &self.all[usize::try_from(seq - 1).unwrap()]
    }

    /// The text of the messages from `seq` on.
    fn text(&self, seq: u64) -> String {
        (seq..self.next()).map(|seq| self.payload(seq).to_owned() + "\n").collect()
    }

    fn target(&self, target: Target, now: u64) -> Option<u64> {
        let seq = match target {
            Target::First => Some(self.first),
            Target::End => Some(self.next()),
            Target::Seq(seq) => Some(seq),
            Target::Forward(count) => Some(now + count),
            Target::Back(count) => now.checked_sub(count),
        };
        seq.filter(|seq| (self.first..=self.next()).contains(seq))
    }
}

struct Held {
    dir: &'static str,
    fh: u64,
    partial: String,
}

struct Follower {
    dir: &'static str,
    fh: u64,
    next: u64,
}

struct Test {
    mount: Mount,
    dirs: BTreeMap<&'static str, Model>,
    held: Option<Held>,
    followers: Vec<Follower>,
    made: u64,
}

impl Test {
    fn new() -> Self {
        Self { mount: Mount::new(), dirs: BTreeMap::new(), held: None, followers: Vec::new(), made: 0 }
    }

    /// A new, unique payload.
    fn payload(&mut self, len: usize) -> String {
        self.made += 1;
        let made = self.made;
        if len == 0 { String::new() } else { format!("{made}{}", "x".repeat(len)) }
    }

    fn has_children(&self, dir: &str) -> bool {
        self.dirs.keys().any(|other| other.strip_prefix(dir).is_some_and(|rest| rest.starts_with('/')))
    }

    fn queue(&mut self, dir: &str) -> Option<&mut Messages> {
        self.dirs.get_mut(dir)?.queue.as_mut()
    }

    fn position(&mut self, dir: &str, reader: &str) -> Option<u64> {
        self.queue(dir)?.readers.get(reader).copied()
    }

    /// Whether an append finds a queue in a directory, or may create one.
    fn may_append(&self, dir: &str) -> Result<()> {
        match self.dirs.get(dir) {
            None => Err(MISSING),
            Some(Model { queue: Some(_), .. }) => Ok(()),
            Some(_) if self.has_children(dir) => Err(Errno::EPERM),
            Some(_) => Ok(()),
        }
    }

    fn appended(&mut self, dir: &'static str, payloads: impl IntoIterator<Item = String>) {
        let model = self.dirs.get_mut(dir).unwrap();
        for payload in payloads {
            let queue = model.queue.get_or_insert_with(|| Messages { first: 1, ..Messages::default() });
            queue.all.push(payload);
        }
    }

    fn step(&mut self, op: &Op) {
        match *op {
            Op::Mkdir(dir) => self.mkdir(DIRS[dir]),
            Op::Rmdir(dir) => self.rmdir(DIRS[dir]),
            Op::Append(dir, format, ref lens, cut, ends) => self.append(DIRS[dir], format, lens, cut, ends),
            Op::Native(dir, len) => self.append_natively(DIRS[dir], len),
            Op::Hold(dir) => self.hold(DIRS[dir]),
            Op::Add(len, ends) => self.add(len, ends),
            Op::LetGo => self.let_go(),
            Op::Follow(dir) => self.follow(DIRS[dir]),
            Op::Register(dir, reader) => self.register(DIRS[dir], READERS[reader]),
            Op::Remove(dir, reader) => self.remove(DIRS[dir], READERS[reader]),
            Op::Move(dir, reader, target) => self.move_reader(DIRS[dir], READERS[reader], target),
            Op::Take(dir, reader, count) => self.take(DIRS[dir], READERS[reader], count),
            Op::Mark(dir, name) => self.mark(DIRS[dir], name),
            Op::Unmark(dir, name) => self.unmark(DIRS[dir], name),
            Op::Retire(dir, count) => self.retire(DIRS[dir], count),
        }
    }

    fn mkdir(&mut self, dir: &'static str) {
        let parent = dir.rsplit_once('/').map(|(parent, _)| self.dirs.get(parent));
        let expected = match parent {
            Some(None) => Err(MISSING),
            Some(Some(Model { queue: Some(_), .. })) => Err(Errno::EPERM),
            _ if self.dirs.contains_key(dir) => Err(Errno::EEXIST),
            _ => Ok(()),
        };
        assert_eq!(self.mount.mkdir(dir), expected);
        expected.ok().and_then(|()| self.dirs.insert(dir, Model::default()));
    }

    fn rmdir(&mut self, dir: &'static str) {
        let removed = self.mount.rmdir(dir);
        match self.dirs.get(dir) {
            None => assert_eq!(removed, Err(MISSING)),
            Some(model) if model.queue.is_none() && model.marked.is_empty() && !self.has_children(dir) => {
                assert_eq!(removed, Ok(()));
                self.dirs.remove(dir);
            }
            Some(_) => assert_eq!(removed.unwrap_err().code(), libc::ENOTEMPTY),
        }
    }

    fn append(&mut self, dir: &'static str, format: Format, lens: &[usize], cut: usize, ends: bool) {
        let mut payloads: Vec<_> = lens.iter().map(|len| self.payload(*len)).collect();
        let (name, pieces): (_, Vec<Vec<u8>>) = match format {
            Format::Bin => {
                payloads.retain(|payload| !payload.is_empty());
                if ends {
                    payloads.truncate(1);
                    ("append.bin", split(&payloads.concat(), cut))
                } else {
                    ("append.packets", payloads.iter().map(|payload| payload.clone().into_bytes()).collect())
                }
            }
            Format::Txt | Format::Jsonl => {
                let is_txt = matches!(format, Format::Txt);
                let line =
                    |payload: &String| if is_txt { payload.clone() } else { format!("{{\"payload\":\"{payload}\"}}") };
                let mut lines = payloads.iter().map(line).collect::<Vec<_>>().join("\n");
                if ends && !payloads.is_empty() {
                    lines.push('\n');
                } else if is_txt && payloads.last().is_some_and(String::is_empty) {
                    payloads.pop();
                }
                (if is_txt { "append.txt" } else { "append.jsonl" }, split(&lines, cut))
            }
        };
        let pieces: Vec<_> = pieces.iter().map(Vec::as_slice).filter(|piece| !piece.is_empty()).collect();
        let expected = self.may_append(dir);
        assert_eq!(self.mount.write(&format!("{dir}/{name}"), &pieces), expected);
        if expected.is_ok() {
            self.appended(dir, payloads);
        }
    }

    fn append_natively(&mut self, dir: &'static str, len: usize) {
        if self.queue(dir).is_none() {
            return;
        }
        let queue = Queue::open(self.mount.native(dir)).unwrap();
        if self.held.as_ref().is_some_and(|held| held.dir == dir) {
            assert!(matches!(queue.writer(), Err(Error::Locked { .. })), "the mount holds the writer's lock");
            return;
        }
        let payload = self.payload(len);
        // A process that another test is starting briefly holds a copy of the last writer's lock.
        let deadline = Instant::now() + Duration::from_secs(20);
        let tries = std::iter::repeat_with(|| queue.writer()).take_while(|_| Instant::now() < deadline);
        tries.flatten().next().unwrap().append(1, payload.as_bytes()).unwrap();
        self.appended(dir, [payload]);
    }

    fn hold(&mut self, dir: &'static str) {
        if self.held.is_none() && self.queue(dir).is_some() {
            let fh = self.mount.open_for_writing(&format!("{dir}/append.txt")).unwrap();
            self.held = Some(Held { dir, fh, partial: String::new() });
        }
    }

    fn add(&mut self, len: usize, ends: bool) {
        let piece = self.payload(len);
        let Some(held) = &mut self.held else { return };
        held.partial += &piece;
        let (dir, fh, whole) = (held.dir, held.fh, held.partial.clone());
        let bytes = piece + if ends { "\n" } else { "" };
        assert_eq!(self.mount.write_to(fh, bytes.as_bytes()), Ok(bytes.len()));
        if ends {
            held.partial.clear();
            self.appended(dir, [whole]);
        }
    }

    fn let_go(&mut self) {
        if let Some(held) = self.held.take() {
            self.mount.tree.release(held.fh);
            self.appended(held.dir, (!held.partial.is_empty()).then_some(held.partial));
        }
    }

    fn follow(&mut self, dir: &'static str) {
        let fh = self.mount.open(&format!("{dir}/follow.txt"));
        match self.queue(dir).map(|queue| queue.next()) {
            Some(next) => self.followers.push(Follower { dir, fh: fh.unwrap(), next }),
            None => assert_eq!(fh, Err(MISSING)),
        }
    }

    fn register(&mut self, dir: &'static str, reader: &'static str) {
        let made = self.mount.mkdir(&format!("{dir}/readers/{reader}"));
        let expected = match (self.position(dir, reader), self.queue(dir)) {
            (_, None) => Err(MISSING),
            (Some(_), _) => Err(Errno::EEXIST),
            (None, Some(queue)) => {
                queue.readers.insert(reader, queue.first);
                Ok(())
            }
        };
        assert_eq!(made, expected);
    }

    fn remove(&mut self, dir: &'static str, reader: &'static str) {
        let removed = self.mount.rmdir(&format!("{dir}/readers/{reader}"));
        let known = self.queue(dir).and_then(|queue| queue.readers.remove(reader));
        assert_eq!(removed, known.map(drop).ok_or(MISSING));
    }

    fn move_reader(&mut self, dir: &'static str, reader: &'static str, target: Target) {
        let word = match target {
            Target::First => "first".to_owned(),
            Target::End => "end".to_owned(),
            Target::Seq(seq) => seq.to_string(),
            Target::Forward(count) => format!("+{count}"),
            Target::Back(count) => format!("-{count}"),
        };
        let moved = self.mount.write(&format!("{dir}/readers/{reader}/position"), &[word.as_bytes()]);
        let now = self.position(dir, reader);
        let expected = match (now, self.queue(dir)) {
            (Some(now), Some(queue)) => match queue.target(target, now) {
                Some(seq) => {
                    queue.readers.insert(reader, seq);
                    Ok(())
                }
                None => Err(Errno::EINVAL),
            },
            _ => Err(MISSING),
        };
        assert_eq!(moved, expected, "{word}");
    }

    fn take(&mut self, dir: &'static str, reader: &'static str, count: usize) {
        let opened = self.mount.open(&format!("{dir}/readers/{reader}/take.txt"));
        let Some(mut position) = self.position(dir, reader) else {
            return assert_eq!(opened, Err(MISSING));
        };
        let fh = opened.unwrap();
        for _ in 0..count {
            let queue = self.dirs[dir].queue.as_ref().unwrap();
            let taken = self.mount.read(fh, 0);
            if position < queue.first {
                assert_eq!(taken, Err(Errno::EPIPE), "messages from {position} on are gone");
                position = queue.first;
            } else if position == queue.next() {
                assert_eq!(taken, Ok(None));
            } else {
                assert_eq!(short(taken.unwrap()), short(Some(queue.payload(position).to_owned() + "\n")));
                position += 1;
            }
        }
        self.mount.tree.release(fh);
        self.queue(dir).unwrap().readers.insert(reader, position);
    }

    fn mark(&mut self, dir: &'static str, name: &'static str) {
        let marked = self.mount.write(&format!("{dir}/{name}"), if name == "LEASE" { &[b"holder\n"] } else { &[] });
        match self.dirs.get_mut(dir) {
            Some(model) => {
                assert_eq!(marked, Ok(()));
                model.marked.insert(name);
            }
            None => assert_eq!(marked, Err(MISSING)),
        }
    }

    fn unmark(&mut self, dir: &'static str, name: &'static str) {
        let removed = self.mount.remove(&format!("{dir}/{name}"));
        let known = self.dirs.get_mut(dir).is_some_and(|model| model.marked.remove(name));
        assert_eq!(removed, if known { Ok(()) } else { Err(MISSING) });
    }

    fn retire(&mut self, dir: &'static str, count: usize) {
        if self.queue(dir).is_none() {
            return;
        }
        let queue = Queue::open(self.mount.native(dir)).unwrap();
        let head = queue.bounds().unwrap().head.segment.0;
        let mut segments: Vec<_> = fs::read_dir(queue.path()).unwrap().map(|entry| entry.unwrap().path()).collect();
        segments.retain(|path| {
            let name = path.file_name().unwrap().to_str().unwrap();
            name.ends_with(".q") && *name < *format!("{head:09}")
        });
        segments.sort();
        segments.iter().take(count).for_each(|path| fs::remove_file(path).unwrap());
        // The engine decides where segments begin.
        self.queue(dir).unwrap().first = queue.bounds().unwrap().first_seq;
    }

    fn check(&mut self) {
        let listed = self.mount.list("");
        assert!(listed.iter().eq(self.dirs.keys().filter(|dir| !dir.contains('/'))), "{listed:?}");
        for dir in DIRS {
            let Some(model) = self.dirs.get(dir) else {
                assert_eq!(self.mount.look(dir).map(|entry| entry.ino), Err(MISSING), "{dir}");
                continue;
            };
            assert_eq!(self.mount.look(dir).unwrap().attr.kind, Kind::Directory);
            let mut expected: BTreeSet<String> = model.marked.iter().map(|name| (*name).to_owned()).collect();
            let children = self.dirs.keys().filter_map(|other| other.strip_prefix(dir)?.strip_prefix('/'));
            expected.extend(children.map(str::to_owned));
            if model.queue.is_some() {
                expected.extend(QUEUE_FILES.split_whitespace().map(str::to_owned));
            }
            assert_eq!(self.mount.list(dir), expected, "{dir}");
            for name in ["READY", "LEASE"] {
                let text = self.mount.cat(&format!("{dir}/{name}"));
                assert_eq!(text.err(), (!model.marked.contains(name)).then_some(MISSING), "{dir}/{name}");
            }
            if model.queue.is_none() {
                assert_eq!(self.mount.cat(&format!("{dir}/messages.txt")), Err(MISSING));
            }
        }
        let Self { mount, dirs, followers, .. } = self;
        for (dir, model) in dirs.iter_mut() {
            if let Some(queue) = &mut model.queue {
                check_messages(mount, dir, queue);
                check_numbers(mount, dir, queue);
                check_readers(mount, dir, queue);
            }
        }
        for follower in followers {
            check_follower(mount, dirs[follower.dir].queue.as_ref().unwrap(), follower);
        }
    }
}

fn check_messages(mount: &Mount, dir: &str, queue: &mut Messages) {
    let text = queue.text(queue.first);
    let entry = mount.look(&format!("{dir}/messages.txt")).unwrap();
    assert_eq!((entry.attr.kind, entry.attr.size), (Kind::File, text.len() as u64), "{dir}");
    let (first, ino) = *queue.seen.get_or_insert((queue.first, entry.ino));
    assert_eq!(ino == entry.ino, first == queue.first, "{dir}: another inode when the beginning is another one");
    queue.seen = Some((queue.first, entry.ino));
    assert_eq!(short(mount.cat(&format!("{dir}/messages.bin")).ok()), short(Some(text.replace('\n', ""))), "{dir}");
    assert_eq!(short(mount.cat(&format!("{dir}/messages.txt")).ok()), short(Some(text)), "{dir}");
    let mut seq = queue.first;
    for line in mount.cat(&format!("{dir}/messages.jsonl")).unwrap().lines() {
        let json: serde_json::Value = serde_json::from_str(line).unwrap();
        assert_eq!((json["seq"].as_u64(), json["payload"].as_str()), (Some(seq), Some(queue.payload(seq))), "{dir}");
        seq += 1;
    }
    assert_eq!(seq, queue.next(), "{dir}");
}

fn check_numbers(mount: &Mount, dir: &str, queue: &Messages) {
    let mut expected: BTreeSet<_> = (queue.first..queue.next()).map(|seq| seq.to_string()).collect();
    if !expected.is_empty() {
        expected.extend(["first", "last"].map(str::to_owned));
    }
    assert_eq!(mount.list(&format!("{dir}/messages")), expected, "{dir}");
    for seq in [1, queue.first, (queue.first + queue.next()) / 2, queue.next() - 1, queue.next()] {
        let payload = mount.cat(&format!("{dir}/messages/{seq}"));
        let is_there = (queue.first..queue.next()).contains(&seq);
        let expected = if is_there { Ok(queue.payload(seq).to_owned()) } else { Err(MISSING) };
        assert_eq!(
            payload.map(|text| short(Some(text))),
            expected.map(|text| short(Some(text))),
            "{dir}/messages/{seq}"
        );
    }
}

fn check_readers(mount: &Mount, dir: &str, queue: &Messages) {
    let names: BTreeSet<_> = queue.readers.keys().map(|name| (*name).to_owned()).collect();
    assert_eq!(mount.list(&format!("{dir}/readers")), names, "{dir}");
    for (name, position) in &queue.readers {
        let cat = |file: &str| mount.cat(&format!("{dir}/readers/{name}/{file}")).unwrap();
        let from = queue.first.max(*position);
        assert_eq!(cat("position"), format!("{position}\n"), "{dir}: {name}");
        assert_eq!(cat("lag"), format!("{}\n", queue.next() - from), "{dir}: {name}");
        assert_eq!(short(Some(cat("messages.txt"))), short(Some(queue.text(from))), "{dir}: {name}");
    }
}

fn check_follower(mount: &Mount, queue: &Messages, follower: &mut Follower) {
    if follower.next < queue.first {
        let read = mount.read(follower.fh, 0);
        assert_eq!(read, Err(Errno::EPIPE), "{}: overtaken at {}", follower.dir, follower.next);
        follower.next = queue.first;
    }
    let mut text = String::new();
    while let Some(more) = mount.read(follower.fh, 0).unwrap() {
        text += &more;
    }
    assert_eq!(short(Some(text)), short(Some(queue.text(follower.next))), "{}", follower.dir);
    follower.next = queue.next();
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_sequence_of_operations_shows_what_the_model_has(ops in prop::collection::vec(op(), 1..60)) {
        let mut test = Test::new();
        test.mkdir("q");
        test.append("q", Format::Txt, &[1, 20_000, 30_000], 50, true);
        test.register("q", "alice");
        for op in &ops {
            test.step(op);
            test.check();
        }
    }
}
