//! Decimal numbers, fast: every rendered line holds four or five. Pure.

/// "00" to "99".
const PAIRS: [[u8; 2]; 100] = {
    let mut pairs = [[b'0'; 2]; 100];
    let mut i = 0;
    let (mut tens, mut ones) = (b'0', b'0');
    while i < 100 {
        pairs[i] = [tens, ones];
        ones += 1;
        if ones > b'9' {
            ones = b'0';
            tens += 1;
        }
        i += 1;
    }
    pairs
};

/// A number known to be small, as a usize.
fn small(n: u64) -> usize {
    usize::try_from(n).unwrap_or(0)
}

/// The last two digits of `n`.
#[inline]
pub(crate) fn two_digits(n: u64) -> [u8; 2] {
    PAIRS[small(n % 100)]
}

/// The nine digits of `n`, which is less than 10^9.
#[inline]
pub(crate) fn nine_digits(n: u64) -> [u8; 9] {
    let (high, low) = (n / 100_000, n % 100_000);
    let [a, b] = two_digits(high / 100);
    let [c, d] = two_digits(high % 100);
    let [e, f] = two_digits(low / 1000);
    let [g, h] = two_digits(low / 10 % 100);
    [a, b, c, d, e, f, g, h, PAIRS[small(low % 10)][1]]
}

/// How many digits `n` has.
#[inline]
pub(crate) fn digits(n: u64) -> usize {
    n.checked_ilog10().map_or(1, |log| usize::try_from(log).unwrap_or(0) + 1)
}

/// A number's digits: the first `len` bytes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Decimal {
    pub(crate) bytes: [u8; 20],
    pub(crate) len: usize,
}

impl Decimal {
    #[inline]
    pub(crate) fn new(mut n: u64) -> Self {
        let len = digits(n);
        let mut bytes = [b'0'; 20];
        let mut end = len;
        while end >= 2 {
            bytes[end - 2..end].copy_from_slice(&two_digits(n));
            n /= 100;
            end -= 2;
        }
        if end == 1 {
            bytes[0] = PAIRS[small(n % 10)][1];
        }
        Self { bytes, len }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn check(n: u64) {
        let Decimal { bytes, len } = Decimal::new(n);
        assert_eq!(&bytes[..len], n.to_string().as_bytes());
        assert_eq!(digits(n), n.to_string().len());
        assert_eq!(nine_digits(n % 1_000_000_000).as_slice(), format!("{:09}", n % 1_000_000_000).as_bytes());
    }

    #[test]
    fn numbers_around_powers_of_ten() {
        check(0);
        check(u64::MAX);
        for power in 0..20 {
            let n = 10_u64.pow(power);
            check(n - 1);
            check(n);
            check(n + 1);
        }
    }

    proptest! {
        #[test]
        fn any_number(n: u64, shift in 0_u32..64) {
            check(n >> shift);
        }
    }
}
