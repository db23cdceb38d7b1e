//! Whether messages follow each other in a burst: then clearing lines ahead of them, and handing theirs over, would take more
//! time from the writer than it saves its readers.

/// Messages that follow each other more quickly than this are a burst.
pub(in crate::queue) const BURST_NS: u64 = 100;
/// At most this many messages of a burst are taken to have shared a timestamp.
const PACKET: u64 = 32;

/// The newest burst.
#[derive(Debug)]
pub(in crate::queue) struct Burst {
    /// The number of its first message.
    from: u64,
}

impl Burst {
    /// `next_seq`: the number of the next message.
    pub(in crate::queue) fn new(next_seq: u64) -> Self {
        Self { from: next_seq }
    }

    /// Whether message `seq` comes after a pause, this long after the one before by their timestamps. Messages that arrived
    /// together may share a timestamp: then this is the time that all of them took.
    #[inline]
    pub(in crate::queue) fn is_over(&mut self, since_last_ns: u64, seq: u64) -> bool {
        if since_last_ns < BURST_NS {
            return false;
        }
        let messages = seq.wrapping_sub(std::mem::replace(&mut self.from, seq));
        since_last_ns >= BURST_NS * messages.clamp(1, PACKET)
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
        // Packets of 10 messages, at once, each millisecond; 1000 messages at once, then one 10 us later.
        assert_eq!(pauses((10..1000).map(|message| message / 10 * 1_000_000)), 99);
        assert_eq!(pauses((1..=1000).map(|message| if message < 1000 { 0 } else { 10_000 })), 1);
    }
}
