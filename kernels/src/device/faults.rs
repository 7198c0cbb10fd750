//! The emulated device sees every planted fault, and nothing where there is none.

use std::ptr::from_ref;

use prime_runtime::cuda::Geometry;
use prime_runtime::{DType, Device, Tensor};

use super::emulator::{self, Options};
use super::launch::Extent;
use super::{DeviceStruct, Pointer, device_struct};

const SOURCES: &[&str] = &[
    include_str!("../../emulator/tests/faults.cu"),
    include_str!("../../emulator/tests/faults_sm90.cu"),
];

device_struct! {
    struct Fault {
        out: Pointer,
        r#in: Pointer,
        blank: Pointer,
        words: Pointer,
        broken: u32,
    }

    struct HopperFault {
        out: Pointer,
        r#in: Pointer,
        broken: u32,
    }
}

/// The kernels, and what the message must hold: one of these, since the order of threads decides what is seen first.
const FAULTS: &[(&str, &[&str])] = &[
    ("fault_missing_sync", &["races with a write", "never written"]),
    ("fault_missing_sync_warp", &["races with a write", "never written"]),
    ("fault_early_overwrite", &["races with a read", "races with a write"]),
    ("fault_same_half_word", &["a write of 2 bytes", "races with a write"]),
    (
        "fault_uninitialised_shared",
        &["at byte 308 of shared memory finds memory that was never written"],
    ),
    (
        "fault_shared_bounds",
        &["at byte 8192 of shared memory lies outside the launch's 8192 bytes"],
    ),
    ("fault_shared_misaligned", &["is misaligned: the offset must be a multiple of 16"]),
    (
        "fault_global_bounds",
        &["pointer 1 lies outside its view of 2 rows of 1024 bytes, 2048 bytes apart"],
    ),
    ("fault_global_end", &["pointer 2 lies outside its view of 2 rows of 1024 bytes"]),
    ("fault_null", &["a null pointer"]),
    ("fault_global_misaligned", &["pointer 2 is misaligned: the address must be a multiple of 16"]),
    ("fault_write_through_read", &["pointer 2, which was given to read only"]),
    ("fault_uninitialised_global", &["pointer 3 finds memory that was never written"]),
    ("fault_global_race", &["races with a write by thread"]),
    ("fault_global_race_in_block", &["races with a write by thread", "never written"]),
    ("fault_missing_fence", &["races with a write by thread"]),
    ("fault_missing_release", &["races with a write by thread 0 of block (0, 0, 0)"]),
    ("fault_divergent", &["while lanes"]),
    ("fault_missing_lane", &["returns while lanes", "have returned"]),
    ("fault_sync_warp_mask", &["while lanes"]),
    ("fault_deadlock", &["threads 0 to 31: at barrier 1 for 64 threads"]),
    ("fault_barrier_count", &["comes to barrier 3"]),
    ("fault_endless_poll", &["look at a value again and again"]),
    ("fault_arrive_order", &["races with a write", "races with a read", "never written"]),
    ("fault_missing_copy_wait", &["before the asynchronous copy into byte"]),
    (
        "fault_missing_sync_after_copy",
        &["races with a write", "never written", "before the asynchronous copy"],
    ),
    ("fault_uncommitted_copy", &["before the asynchronous copy into byte"]),
    ("fault_wrong_phase", &["before the asynchronous copy", "never written", "races with a write"]),
    (
        "fault_missing_expect",
        &["at the mbarrier at byte 8128 of shared memory for the phase of parity 0"],
    ),
    ("fault_too_many_arrivals", &["more arrivals come to the mbarrier at byte 8128"]),
    ("fault_barrier_unfenced", &["fence_barrier_init must follow mbarrier_init"]),
    ("fault_barrier_unknown", &["where no mbarrier was initialised"]),
    ("fault_early_release", &["races with", "before the asynchronous copy"]),
    ("fault_proxy_fence", &["fence_proxy_async must come between"]),
    ("fault_proxy_fence_of_another", &["fence_proxy_async must come between, by who stored it"]),
    ("fault_proxy_fence_before_copy", &["fence_proxy_async must come between"]),
    (
        "fault_elected_lane",
        &["returns while a bulk store that it started may still read shared memory"],
    ),
    ("fault_store_overwritten", &["which wgmma or a bulk store may still read"]),
    (
        "fault_store_abandoned",
        &["returns while a bulk store that it started may still read shared memory"],
    ),
    ("fault_wgmma_proxy_fence", &["fence_proxy_async must come between"]),
    ("fault_wgmma_operand_overwritten", &["which wgmma or a bulk store may still read"]),
    ("fault_wgmma_accumulator_touched", &["was written while wgmma worked on it"]),
    ("fault_wgmma_a_touched", &["was written while wgmma read it"]),
    ("fault_wgmma_fence", &["wgmma_fence must come between"]),
    ("fault_wgmma_missing_warp", &["in wgmma_wait, for warps of the warpgroup"]),
    ("fault_register_pool", &["registers_decrease to 232 registers by threads that have 224"]),
    ("fault_cluster_sync", &["races with a write by thread", "never written"]),
    (
        "fault_cluster_arrival_at_exit",
        &["whose threads have all returned", "cluster_arrive and cluster_wait must come between"],
    ),
    (
        "fault_cluster_copy_at_exit",
        &[
            "whose threads have all returned",
            "cluster_arrive and cluster_wait must come between",
            "while an asynchronous operation still uses",
        ],
    ),
    ("fault_cluster_relaxed", &["races with a write by thread"]),
    ("fault_early_grid_access", &["before begin_grid, in a launch"]),
    ("fault_early_grid_return", &["returns without begin_grid"]),
    ("fault_cluster_exit", &["block 1 of the cluster, whose threads have all returned"]),
];

const ROWS: usize = 2;
const COLUMNS: usize = 256;
const ROW_STRIDE: usize = 512;
const SEEDS: u64 = 6;

/// Two rows with room between them, all of it written or none.
fn rows(written: bool) -> Tensor {
    let host = Tensor::from_slice(&[1.0f32; ROWS * ROW_STRIDE], &[ROWS * ROW_STRIDE]).unwrap();
    let mut tensor = host.to(Device::Emulated).unwrap();
    if !written {
        prime_runtime::emulated::forget(tensor.view_mut());
    }
    tensor
}

fn extent(tensor: &Tensor, rows: usize, columns: usize, writable: bool) -> Extent {
    Extent {
        start: tensor.view().address(),
        rows: rows as u64,
        row_bytes: 4 * columns as u64,
        row_stride: 4 * if rows == 1 { columns } else { ROW_STRIDE } as u64,
        writable,
    }
}

fn bytes_of<S: DeviceStruct>(arguments: &S) -> &[u8] {
    // SAFETY: plain data of `repr(C)`, alive as long as the slice.
    unsafe { std::slice::from_raw_parts(from_ref(arguments).cast(), size_of::<S>()) }
}

/// Runs a kernel, which keeps or breaks its rule; what the emulated device says of it.
fn run(kernel: &str, broken: bool, options: Options) -> Result<(), String> {
    let (out, input) = (rows(false), rows(true));
    let mut blank = Tensor::zeros(Device::Emulated, DType::F32, &[COLUMNS]).unwrap();
    prime_runtime::emulated::forget(blank.view_mut());
    let words = Tensor::zeros(Device::Emulated, DType::U32, &[COLUMNS]).unwrap();
    let extents = [
        extent(&out, ROWS, COLUMNS, true),
        extent(&input, ROWS, COLUMNS, false),
        extent(&blank, 1, COLUMNS, true),
        extent(&words, 1, COLUMNS, true),
    ];
    let pointer = |index: usize| Pointer::tagged(extents[index].start, index);
    let cluster = if kernel.contains("cluster") { 2 } else { 1 };
    let early = kernel.contains("early_grid");
    let geometry = Geometry { grid: [2, 1, 1], block: 128, cluster, shared_bytes: 8192, early };
    let broken = broken.into();
    let result = if SOURCES[0].contains(&format!(" {kernel}(")) {
        let arguments = Fault {
            out: pointer(0),
            r#in: pointer(1),
            blank: pointer(2),
            words: pointer(3),
            broken,
        };
        emulator::launch_with(options, kernel, 0, bytes_of(&arguments), geometry, &extents)
    } else {
        let arguments = HopperFault { out: pointer(0), r#in: pointer(1), broken };
        emulator::launch_with(options, kernel, 0, bytes_of(&arguments), geometry, &extents)
    };
    result.map_err(|error| error.to_string())
}

fn options(seed: u64) -> Options {
    Options { seed, workers: 1 + (seed % 2) as u32, ..Options::DEFAULT }
}

#[test]
fn every_planted_fault_is_seen_whatever_the_seed() {
    for (kernel, expected) in FAULTS {
        for seed in 0..SEEDS {
            let message = run(kernel, true, options(seed))
                .expect_err(&format!("{kernel}, seed {seed}: the fault was not seen"));
            assert!(expected.iter().any(|part| message.contains(part)), "{kernel}: {message}");
            assert!(message.contains(&format!("kernel `{kernel}`, block (")), "{message}");
            assert!(message.contains(&format!("seed {seed}")), "{message}");
        }
    }
}

#[test]
fn kernels_that_keep_the_rules_run_whatever_the_seed() {
    for (kernel, _) in FAULTS {
        for seed in 0..SEEDS {
            if let Err(message) = run(kernel, false, options(seed)) {
                panic!("{kernel}, seed {seed}: {message}");
            }
        }
    }
}

#[test]
fn every_kernel_of_the_fault_files_is_listed() {
    let listed: Vec<&str> = FAULTS.iter().map(|(kernel, _)| *kernel).collect();
    for source in SOURCES {
        for line in source.lines() {
            if let Some(kernel) = line.strip_prefix("INSTANCE(") {
                let kernel = kernel.trim_end_matches(')');
                assert!(listed.contains(&kernel), "{kernel}");
            }
        }
    }
}

#[test]
fn checks_can_be_switched_off() {
    let races_off = Options { races: false, ..options(1) };
    assert_eq!(run("fault_global_race", true, races_off), Ok(()));
    let all_memory_counts = Options { uninitialised: false, ..options(1) };
    assert_eq!(run("fault_uninitialised_global", true, all_memory_counts), Ok(()));
}

#[test]
fn a_kernel_that_failed_leaves_the_device_usable() {
    for seed in 0..20 {
        assert!(run("fault_deadlock", true, options(seed)).is_err());
        assert_eq!(run("fault_deadlock", false, options(seed)), Ok(()));
    }
}

#[test]
fn wrong_geometry_is_refused_with_the_number_that_is_wrong() {
    let right =
        Geometry { grid: [2, 1, 1], block: 128, cluster: 1, shared_bytes: 8192, early: false };
    let wrong = [
        (Geometry { block: 2048, ..right }, 0, "a block of 2048 threads"),
        (
            Geometry { shared_bytes: 300_000, ..right },
            0,
            "300000 bytes of shared memory: a block has at most 232448",
        ),
        (Geometry { cluster: 3, ..right }, 0, "in clusters of 3"),
        (Geometry { grid: [1, 70_000, 1], ..right }, 0, "1 x 70000 x 1"),
        (right, 64, "a block of 128 threads, and the kernel is written KERNEL(64)"),
    ];
    for (geometry, most, expected) in wrong {
        let bytes = [0u8; size_of::<HopperFault>()];
        let message =
            emulator::launch_with(options(1), "fault_wrong_phase", most, &bytes, geometry, &[]);
        let message = message.unwrap_err().to_string();
        assert!(message.contains(expected), "{message}");
    }
    let message = emulator::launch_with(options(1), "fault_wrong_phase", 0, &[0; 4], right, &[]);
    let message = message.unwrap_err().to_string();
    assert!(message.contains("passes 4 bytes of arguments, and the kernel takes 24"), "{message}");
}
