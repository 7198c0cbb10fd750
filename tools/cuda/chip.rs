//! The chips that kernels are compiled for, and how many blocks a multiprocessor of each holds.

/// What a multiprocessor offers (CUDA C++ Programming Guide, "Technical Specifications per Compute Capability"). All have 65536 registers in four
/// parts, each serving a quarter of the warps.
#[derive(Debug)]
pub struct Chip {
    /// As compilers are told.
    pub name: &'static str,
    /// Chips of one family, neighbours in the table, get the same PTX but for the chip's name (seen of all kernels with NVRTC 13.0).
    pub family: u32,
    warps: u32,
    blocks: u32,
    /// Kibibytes of shared memory.
    shared: u32,
}

/// In the order of the table.
pub const CHIPS: &[Chip] = &[
    Chip { name: "sm_80", family: 80, warps: 64, blocks: 32, shared: 164 },
    Chip { name: "sm_86", family: 80, warps: 48, blocks: 16, shared: 100 },
    Chip { name: "sm_89", family: 80, warps: 48, blocks: 24, shared: 100 },
    Chip { name: "sm_90a", family: 90, warps: 64, blocks: 32, shared: 228 },
    Chip { name: "sm_100a", family: 100, warps: 64, blocks: 32, shared: 228 },
    Chip { name: "sm_120a", family: 100, warps: 48, blocks: 24, shared: 100 },
];

/// How a kernel fills a multiprocessor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Occupancy {
    /// Blocks that registers and threads allow.
    pub blocks: u32,
    /// Their warps in percent of the most.
    pub percent: u32,
    /// Bytes of shared memory that each of so many blocks may have.
    pub shared: u32,
}

impl Chip {
    /// The chip of a name.
    pub fn find(name: &str) -> Option<&'static Chip> {
        CHIPS.iter().find(|chip| chip.name == name)
    }

    /// How a kernel of so many registers a thread and threads a block fills a multiprocessor.
    pub fn occupancy(&self, registers: u32, threads: u32) -> Occupancy {
        let warps = threads.div_ceil(32).max(1);
        // A warp's registers come in pieces of 256, from the part of the file that serves it.
        let of_warp = registers.max(1).div_ceil(8) * 8 * 32;
        let by_registers = 4 * (65_536 / 4 / of_warp) / warps;
        let blocks = by_registers.min(self.warps / warps).min(self.blocks);
        // A kibibyte of each block is the system's.
        let shared =
            (self.shared * 1024).checked_div(blocks).map_or(0, |share| share.saturating_sub(1024));
        Occupancy { blocks, percent: blocks * warps * 100 / self.warps, shared: shared / 128 * 128 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn occupancy_is_that_of_the_programming_guide() {
        let chip = Chip::find("sm_90a").unwrap();
        // 65536 / (32 registers * 256 threads) = 8 blocks of 8 warps: all 64.
        assert_eq!(chip.occupancy(32, 256), Occupancy { blocks: 8, percent: 100, shared: 28_160 });
        // 33 registers are allocated as 40: 12 warps a quarter, 48 in all.
        assert_eq!(chip.occupancy(33, 256), Occupancy { blocks: 6, percent: 75, shared: 37_888 });
        // 168 registers of 384 threads are one block.
        assert_eq!(chip.occupancy(168, 384).blocks, 1);
        assert_eq!(chip.occupancy(168, 384).shared, 227 * 1024);
        // Small blocks are limited by their number.
        assert_eq!(Chip::find("sm_86").unwrap().occupancy(16, 32).percent, 33);
        // 255 registers of 512 threads do not fit at all.
        assert_eq!(chip.occupancy(255, 512).blocks, 0);
    }
}
