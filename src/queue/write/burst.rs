//! Whether messages follow each other in a burst: then clearing lines ahead of them, and handing theirs over, would take
//! more time from the writer than it saves its readers.

/// Messages that follow each other more quickly than this are a burst.
pub(in crate::queue) const BURST_NS: u64 = 100;
/// A timestamp counts as shared by at most this many messages.
const PACKET: u64 = 32;

/// The newest burst.
#[derive(Debug)]
pub(in crate::queue) struct Burst {
    /// The newest message with a timestamp of its own.
    stamped: u64,
}

impl Burst {
    /// `next_seq`: the number of the next message.
    pub(in crate::queue) fn new(next_seq: u64) -> Self {
        Self { stamped: next_seq }
    }

    /// Whether message `seq` comes after a pause, this long after the one before by their timestamps. Messages that
    /// arrived together may share a timestamp: then this is the time that all of them took.
    #[inline]
    pub(in crate::queue) fn is_over(&mut self, since_last_ns: u64, seq: u64) -> bool {
        if since_last_ns == 0 {
            return false;
        }
        let sharers = seq.wrapping_sub(std::mem::replace(&mut self.stamped, seq));
        since_last_ns >= BURST_NS * sharers.clamp(1, PACKET)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How many of the messages are taken to come after a pause.
    fn pauses(stamps: impl IntoIterator<Item = u64>) -> usize {
        let (mut burst, mut last) = (Burst::new(1), 0);
        let mut is_over = |(seq, stamp)| burst.is_over(stamp - std::mem::replace(&mut last, stamp), seq);
        (1..).zip(stamps).filter(|&message| is_over(message)).count()
    }

    #[test]
    fn messages_that_share_timestamps_are_a_burst() {
        for packet in [2, 10, 100] {
            // 20 ns each.
            assert_eq!(pauses((0..1000).map(|message| message / packet * packet * 20)), 0, "{packet} messages");
        }
    }

    #[test]
    fn single_messages_are_none_nor_is_what_comes_after_a_pause() {
        assert_eq!(pauses((1..=1000).map(|message| message * 100)), 1000);
        // 32 messages 25 ns apart, then a pause of 500 ns.
        assert_eq!(pauses((32..3200).map(|message| message * 25 + message / 32 * 500)), 99);
        // 10 messages at once, each millisecond; 1000 messages at once, then one 10 us later.
        assert_eq!(pauses((10..1000).map(|message| message / 10 * 1_000_000)), 99);
        assert_eq!(pauses((1..=1000).map(|message| if message < 1000 { 0 } else { 10_000 })), 1);
    }
}
