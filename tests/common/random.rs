//! Numbers that look random and are the same for the same seed (xorshift).
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    /// A number less than `limit`, which is not 0.
    pub fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }

    /// An index into something of this length, which is not 0.
    pub fn index(&mut self, len: usize) -> usize {
        usize::try_from(self.below(len as u64)).unwrap()
    }

    /// Mostly short, some empty, a few of many kilobytes; text, JSON and arbitrary bytes.
    pub fn payload(&mut self) -> Vec<u8> {
        let len = match self.index(100) {
            0..5 => 0,
            5..8 => 1000 + self.index(30_000),
            _ => 1 + self.index(300),
        };
        let alphabet: &[u8] = match self.index(5) {
            0 => b"\"\\\n\t\x00\x7f\xc3\xff",
            1 => b"\0\0\0\0\0\0\0\x01",
            2 => b"plain text, no more",
            _ => b"{\"price\":\"61800.20\",\"size\":\"2.507\"}",
        };
        let runs = self.index(4) == 0;
        let mut payload = Vec::with_capacity(len);
        while payload.len() < len {
            let byte = alphabet[self.index(alphabet.len())];
            let count = if runs { 1 + self.index(60) } else { 1 };
            payload.extend(std::iter::repeat_n(byte, count.min(len - payload.len())));
        }
        payload
    }
}
