//! Instructions of the processor that the language has no words for: CRC-32C of short pieces.
//!
//! A record of a few hundred bytes is checked in the time that a library needs to find out how it wants to do it, so
//! this is the one checksum that is written out here. Long pieces, and processors without the instructions, are left to
//! a library (`codec/checksum.rs`).

/// Pieces from this length on are better off with wider instructions than these.
#[cfg(target_arch = "x86_64")]
const SHORT_BYTES_MAX: usize = 768;

/// The register of a CRC-32C after `bytes`, if this is the fastest way to know it here: the piece is short, and the
/// processor has the instructions. The register is the complement of the CRC.
#[cfg(target_arch = "x86_64")]
#[inline]
pub(crate) fn crc32c_register(register: u32, bytes: &[u8]) -> Option<u32> {
    if bytes.len() >= SHORT_BYTES_MAX
        || !std::arch::is_x86_feature_detected!("sse4.2")
        || !std::arch::is_x86_feature_detected!("pclmulqdq")
    {
        return None;
    }
    // SAFETY: the processor has both instruction sets; the function itself does nothing that is not safe.
    Some(unsafe { x86::short(register, bytes) })
}

/// As above: there are no such instructions here.
#[cfg(not(target_arch = "x86_64"))]
#[inline]
pub(crate) fn crc32c_register(_register: u32, _bytes: &[u8]) -> Option<u32> {
    None
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::{
        _mm_clmulepi64_si128, _mm_crc32_u8, _mm_crc32_u16, _mm_crc32_u32, _mm_crc32_u64, _mm_cvtsi64_si128,
        _mm_cvtsi128_si64,
    };

    /// The polynomial, lowest power in the highest bit, without its power 32.
    const POLYNOMIAL: u32 = 0x82F6_3B78;
    /// The instruction takes one word in three cycles and can begin one in each: three pieces go side by side.
    const LANE_BYTES: usize = 64;
    const TRIPLE_BYTES: usize = 3 * LANE_BYTES;
    /// What a register is multiplied with to stand for what it would be behind so many more zero bytes. The product is
    /// twice as long and one bit aside; the instruction that takes it in multiplies by the power 32 besides.
    const BEHIND_ONE_LANE: i64 = power(LANE_BYTES as u32 * 8 - 33) as i64;
    const BEHIND_TWO_LANES: i64 = power(2 * LANE_BYTES as u32 * 8 - 33) as i64;

    /// x to this power, modulo the polynomial.
    const fn power(exponent: u32) -> u32 {
        let (mut value, mut at) = (1u32 << 31, 0);
        while at < exponent {
            value = if value & 1 == 1 { (value >> 1) ^ POLYNOMIAL } else { value >> 1 };
            at += 1;
        }
        value
    }

    #[target_feature(enable = "sse4.2,pclmulqdq")]
    pub(super) fn short(register: u32, bytes: &[u8]) -> u32 {
        let mut register = u64::from(register);
        let mut triples = bytes.chunks_exact(TRIPLE_BYTES);
        for triple in &mut triples {
            let (words, _) = triple.as_chunks::<8>();
            let (mut first, mut second, mut third) = (register, 0, 0);
            for at in 0..LANE_BYTES / 8 {
                first = _mm_crc32_u64(first, u64::from_le_bytes(words[at]));
                second = _mm_crc32_u64(second, u64::from_le_bytes(words[at + LANE_BYTES / 8]));
                third = _mm_crc32_u64(third, u64::from_le_bytes(words[at + 2 * LANE_BYTES / 8]));
            }
            let moved = multiply(first, BEHIND_TWO_LANES) ^ multiply(second, BEHIND_ONE_LANE);
            register = third ^ _mm_crc32_u64(0, moved);
        }
        let (words, rest) = triples.remainder().as_chunks::<8>();
        for word in words {
            register = _mm_crc32_u64(register, u64::from_le_bytes(*word));
        }
        // At most seven bytes are left: four, two and one.
        let (mut register, mut rest) = (register as u32, rest);
        if let Some((word, behind)) = rest.split_first_chunk() {
            (register, rest) = (_mm_crc32_u32(register, u32::from_le_bytes(*word)), behind);
        }
        if let Some((word, behind)) = rest.split_first_chunk() {
            (register, rest) = (_mm_crc32_u16(register, u16::from_le_bytes(*word)), behind);
        }
        if let Some(byte) = rest.first() {
            register = _mm_crc32_u8(register, *byte);
        }
        register
    }

    /// The product of two polynomials of 32 bits.
    #[target_feature(enable = "sse4.2,pclmulqdq")]
    fn multiply(register: u64, factor: i64) -> u64 {
        let product =
            _mm_clmulepi64_si128::<0>(_mm_cvtsi64_si128(register as i64), _mm_cvtsi64_si128(factor));
        _mm_cvtsi128_si64(product) as u64
    }
}
