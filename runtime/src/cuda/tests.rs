//! The device against a driver without a GPU (`tests/driver.c`), which does all work as late as it may.
//!
//! A process has one driver, so each test runs again as a process of its own, with the driver in the folder that the
//! environment names. Where there is no C compiler, the tests print that they were skipped.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use super::*;
use crate::{DType, Device, Plan, Tensor, bf16};

const CHILD: &str = "PRIME_TEST_CHILD";

/// Runs a test's body in a process of its own, with this environment.
fn alone(test: &str, settings: &[(&str, &str)], body: impl FnOnce()) {
    let name = format!("cuda::tests::{test}");
    if std::env::var(CHILD).is_ok_and(|child| child == name) {
        return body();
    }
    let Some(folder) = pretended_driver() else { return };
    let program = std::env::current_exe().unwrap();
    let output = Command::new(program)
        .args(["--exact", &name, "--nocapture"])
        .env(CHILD, &name)
        .env(LIBRARIES_VARIABLE, folder)
        .env_remove("CUDA_VISIBLE_DEVICES")
        .envs(settings.iter().copied())
        .output()
        .unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(
        output.status.success() && text(&output.stdout).contains("1 passed"),
        "{}\n{}{}",
        output.status,
        text(&output.stdout),
        text(&output.stderr)
    );
}

/// The folder of the compiled driver, kept beside the test program from run to run.
fn pretended_driver() -> Option<PathBuf> {
    static FOLDER: OnceLock<Option<PathBuf>> = OnceLock::new();
    let built = FOLDER.get_or_init(|| {
        let source = include_str!("tests/driver.c");
        let hash = blake3::hash(source.as_bytes()).to_hex();
        let program = std::env::current_exe().unwrap();
        let folder = program.parent().unwrap().join(format!("pretended-driver-{}", &hash[..16]));
        let library = folder.join("libcuda.so.1");
        if !library.exists() {
            std::fs::create_dir_all(&folder).unwrap();
            let temporary = folder.join(format!("{}.so", std::process::id()));
            let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/cuda/tests/driver.c");
            let compiled = Command::new("cc")
                .args(["-shared", "-fPIC", "-O1", "-pthread", "-o"])
                .args([&temporary, &path])
                .status();
            match compiled {
                Ok(status) => assert!(status.success(), "the pretended driver does not compile"),
                Err(_) => return None,
            }
            std::fs::rename(&temporary, &library).unwrap();
        }
        Some(folder)
    });
    if built.is_none() {
        println!("skipped: there is no C compiler `cc`");
    }
    built.clone()
}

fn numbers(count: usize) -> Vec<u32> {
    (0..count as u32).map(|i| i.wrapping_mul(2654435761)).collect()
}

fn tensor(device: Device, dims: &[usize]) -> Tensor {
    let values = numbers(dims.iter().product());
    Tensor::from_slice(&values, dims).unwrap().to(device).unwrap()
}

const GPU: Device = Device::Cuda(0);

#[test]
fn memory_of_a_device_is_zeroed_and_cannot_be_followed_on_the_host() {
    alone("memory_of_a_device_is_zeroed_and_cannot_be_followed_on_the_host", &[], || {
        let mut plan = Plan::new();
        let slots = [3, 1000].map(|n| plan.add("part", DType::BF16, &[("n", n)]));
        let mut memory = plan.allocate(GPU).unwrap();
        let [small, large] = slots.map(|slot| memory.take(slot));
        assert_eq!(large.view().to_vec::<bf16>().unwrap(), vec![bf16::ZERO; 1000]);
        assert_eq!(large.view().address() - small.view().address(), 64);
        let empty = Tensor::zeros(GPU, DType::F32, &[0, 5]).unwrap();
        assert!(empty.view().to_vec::<f32>().unwrap().is_empty());
        let panic = std::panic::catch_unwind(|| small.as_slice::<bf16>().len()).unwrap_err();
        assert_eq!(
            panic.downcast_ref::<String>().unwrap(),
            "a tensor on cuda:0 was used as host memory; copy it to the cpu first"
        );
    });
}

#[test]
fn copies_of_every_size_arrive_whole_however_late_the_device_reads() {
    alone("copies_of_every_size_arrive_whole_however_late_the_device_reads", &[], || {
        // Around the size of a piece, and large enough for several lanes that each reuse their buffers.
        let piece = 1 << 20;
        for count in [1, 63, piece - 1, piece, piece + 1, 3 * piece + 5, 24 * piece + 7] {
            let values = numbers(count);
            let host = Tensor::from_slice(&values, &[count]).unwrap();
            let device = host.to(GPU).unwrap();
            drop(host);
            let again = device.to(GPU).unwrap();
            drop(device);
            assert!(again.view().to_vec::<u32>().unwrap() == values, "{count} words");
        }
    });
}

#[test]
fn many_small_copies_do_not_run_over_each_other() {
    alone("many_small_copies_do_not_run_over_each_other", &[], || {
        // More than both buffers hold, with nobody waiting for the device in between.
        let count = 5000;
        let mut device = Tensor::zeros(GPU, DType::U32, &[count, 700]).unwrap();
        for row in 0..count {
            let values = [row as u32; 700];
            device.view_mut().into_rows(row..row + 1).write(&values).unwrap();
        }
        let values = device.view().to_vec::<u32>().unwrap();
        assert!(values.chunks(700).enumerate().all(|(row, values)| values == [row as u32; 700]));
    });
}

#[test]
fn spread_rows_are_copied_in_every_direction_and_nothing_beside_them() {
    alone(
        "spread_rows_are_copied_in_every_direction_and_nothing_beside_them",
        &[("FAKE_DEVICES", "2")],
        || {
            let all = [Device::Cpu, Device::Emulated, GPU, Device::Cuda(1)];
            let two = [Device::Cpu, GPU];
            // Short rows by the hundred thousand, rows longer than a buffer, and enough of them for several lanes.
            for (rows, width, devices) in [
                (3, 5, all.as_slice()),
                (130_000, 9, &two),
                (3, 1_200_000, &two),
                (6, 1_200_000, &two),
            ] {
                let pairs =
                    devices.iter().flat_map(|to| devices.iter().map(move |from| (*to, *from)));
                for (to, from) in pairs {
                    let source = tensor(from, &[rows, width]);
                    let mut target = Tensor::zeros(to, DType::U32, &[rows, width]).unwrap();
                    let part = source.view().columns(1..width - 2);
                    target.view_mut().into_columns(2..width - 1).copy_from(part).unwrap();
                    let (values, found) =
                        (numbers(rows * width), target.view().to_vec::<u32>().unwrap());
                    for (row, found) in found.chunks(width).enumerate() {
                        let expected = &values[row * width + 1..(row + 1) * width - 2];
                        assert!(found[2..width - 1] == *expected, "row {row} from {from} to {to}");
                        assert!(
                            found[..2] == [0, 0] && found[width - 1] == 0,
                            "beside, {from} to {to}"
                        );
                    }
                }
            }
        },
    );
}

#[test]
fn clearing_a_view_leaves_what_is_beside_it() {
    alone("clearing_a_view_leaves_what_is_beside_it", &[], || {
        let mut device = tensor(GPU, &[3, 4]);
        device.view_mut().into_columns(1..3).fill_zero().unwrap();
        device.view_mut().into_rows(2..3).fill_zero().unwrap();
        device.view_mut().into_rows(1..1).fill_zero().unwrap();
        let n = numbers(12);
        let expected = [n[0], 0, 0, n[3], n[4], 0, 0, n[7], 0, 0, 0, 0];
        assert_eq!(device.view().to_vec::<u32>().unwrap(), expected);
    });
}

#[test]
fn what_was_never_written_on_the_emulated_device_does_not_reach_another() {
    alone("what_was_never_written_on_the_emulated_device_does_not_reach_another", &[], || {
        let mut emulated = tensor(Device::Emulated, &[4]);
        crate::emulated::forget(emulated.view_mut().into_rows(1..2));
        let error = emulated.to(GPU).unwrap_err().to_string();
        assert!(error.contains("reads 4 bytes that were never written"), "{error}");
        let device = tensor(GPU, &[4]);
        emulated.view_mut().copy_from(device.view()).unwrap();
        assert_eq!(emulated.view().to_vec::<u32>().unwrap(), numbers(4));
    });
}

#[test]
fn a_plan_without_room_names_its_largest_parts() {
    alone("a_plan_without_room_names_its_largest_parts", &[("FAKE_MEMORY", "3145728")], || {
        let held = Tensor::zeros(GPU, DType::F32, &[1 << 18]).unwrap();
        let mut plan = Plan::new();
        plan.add("activations.gate_up", DType::BF16, &[("tokens", 1 << 19)]);
        plan.add("small", DType::BF16, &[("tokens", 32)]);
        plan.add("cache.keys", DType::F32, &[("tokens", 3 << 18)]);
        let error = plan.allocate(GPU).err().unwrap().to_string();
        assert_eq!(
            error,
            "cuda:0 is out of memory: 4.0 MiB are needed and 2.0 MiB are free; \
             the largest parts are cache.keys with 3.0 MiB, activations.gate_up with 1.0 MiB, small with 64 bytes"
        );
        // What was given back can be had again.
        let two = || Tensor::zeros(GPU, DType::F32, &[3 << 18]);
        assert!(two().is_err());
        drop(held);
        two().unwrap();
    });
}

#[test]
fn a_device_that_is_not_there_is_told_from_those_that_are() {
    alone(
        "a_device_that_is_not_there_is_told_from_those_that_are",
        &[("FAKE_DEVICES", "2"), ("CUDA_VISIBLE_DEVICES", "4,5")],
        || {
            assert_eq!(device_count().unwrap(), 2);
            let error = Tensor::zeros(Device::Cuda(2), DType::F32, &[1]).unwrap_err().to_string();
            assert_eq!(
                error,
                "there is no cuda:2: the NVIDIA driver reports 2 GPUs, the last of them cuda:1 (CUDA_VISIBLE_DEVICES is `4,5`)"
            );
            let error = Tensor::zeros(Device::Cuda(99), DType::F32, &[1]).unwrap_err().to_string();
            assert!(error.contains("numbered below 64"), "{error}");
        },
    );
}

#[test]
fn a_driver_without_a_gpu_is_no_fault_of_the_driver() {
    alone("a_driver_without_a_gpu_is_no_fault_of_the_driver", &[("FAKE_INIT", "100")], || {
        assert_eq!(device_count().unwrap(), 0);
        let error = Tensor::zeros(GPU, DType::F32, &[1]).unwrap_err().to_string();
        assert!(error.starts_with("there is no cuda:0: the NVIDIA driver at "), "{error}");
        assert!(error.ends_with("reports no GPU; --device cpu computes without one"), "{error}");
    });
}

#[test]
fn a_driver_that_does_not_start_says_so_in_its_own_words() {
    alone("a_driver_that_does_not_start_says_so_in_its_own_words", &[("FAKE_INIT", "803")], || {
        for _ in 0..2 {
            let error = device_count().unwrap_err().to_string();
            assert!(error.contains("does not start: cuInit failed: words of the driver (CUDA_ERROR_SYSTEM_DRIVER_MISMATCH, 803)"), "{error}");
        }
        Tensor::zeros(Device::Cpu, DType::F32, &[1]).unwrap();
    });
}

#[test]
fn a_driver_that_is_too_old_is_told_which_is_needed() {
    alone("a_driver_that_is_too_old_is_told_which_is_needed", &[], || {
        // Another folder, with a library of that name and nothing in it.
        let folder = tempfile::tempdir().unwrap();
        let source = folder.path().join("empty.c");
        std::fs::write(&source, "int nothing;\n").unwrap();
        let library = folder.path().join("libcuda.so.1");
        let built = Command::new("cc").args(["-shared", "-o"]).args([&library, &source]).status();
        assert!(built.unwrap().success());
        // SAFETY: this process runs this test alone.
        unsafe { std::env::set_var(LIBRARIES_VARIABLE, folder.path()) };
        let error = device_count().unwrap_err().to_string();
        assert!(
            error.contains("has no function cuGetErrorName: it is older than CUDA 12.4"),
            "{error}"
        );
    });
}

#[test]
fn a_chip_before_ampere_is_refused_but_described() {
    alone("a_chip_before_ampere_is_refused_but_described", &[("FAKE_CHIP", "75")], || {
        let found = properties(0).unwrap();
        assert_eq!(
            (found.name.as_str(), found.chip),
            ("Pretended GPU 0", Chip { major: 7, minor: 5 })
        );
        let error = Tensor::zeros(GPU, DType::F32, &[1]).unwrap_err().to_string();
        assert_eq!(
            error,
            "cuda:0 is a Pretended GPU 0 with compute capability 7.5; the kernels need 8.0 (Ampere) or newer"
        );
    });
}

#[test]
fn a_device_is_described() {
    alone("a_device_is_described", &[], || {
        let found = properties(0).unwrap();
        assert_eq!(found.chip.architecture(), "sm_90a");
        assert_eq!(
            (found.multiprocessors, found.memory, found.shared_per_block),
            (132, 1 << 30, 232448)
        );
        assert_eq!((found.driver, found.clock, found.cache), ((13, 0), 1980000, 50 << 20));
        assert_eq!(driver_library().unwrap().version, (13, 0));
        assert_eq!(memory(0).unwrap(), (1 << 30, 1 << 30));
    });
}

// As the driver's kernel takes them: it writes its geometry to `out`, then adds to the words that follow.
fn arguments(out: &Tensor, count: u32, add: u32) -> [u8; 16] {
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&out.view().address().to_le_bytes());
    bytes[8..12].copy_from_slice(&count.to_le_bytes());
    bytes[12..].copy_from_slice(&add.to_le_bytes());
    bytes
}

fn kernel(symbol: &str) -> Result<Function> {
    let compiled = Compiled { symbol: symbol.to_owned(), cubin: b"\x7fELF".to_vec() };
    Function::load(0, "add<u32>", &compiled)
}

const SMALL: Geometry =
    Geometry { grid: [4, 2, 1], block: 128, cluster: 1, shared_bytes: 0, early: false };

#[test]
fn a_kernel_is_started_with_its_geometry_and_its_arguments() {
    alone("a_kernel_is_started_with_its_geometry_and_its_arguments", &[], || {
        let kernel = kernel("add").unwrap();
        let expected =
            Resources { registers: 40, local_bytes: 0, most_threads: 256, argument_bytes: 16 };
        assert_eq!(kernel.resources(), expected);
        assert_eq!(kernel.blocks_per_multiprocessor(128, 1024).unwrap(), 5);
        assert_eq!(kernel.clusters(Geometry { cluster: 2, ..SMALL }).unwrap(), 66);
        let out = tensor(GPU, &[11]);
        let bytes = arguments(&out, 2, 7);
        // SAFETY: the driver's kernel writes 8 words and adds to 2.
        unsafe { launch(kernel, Geometry { cluster: 2, shared_bytes: 200_000, ..SMALL }, &bytes) }
            .unwrap();
        let n = numbers(11);
        let expected =
            [4, 2, 1, 128, 1, 1, 200_000, 2, n[8].wrapping_add(7), n[9].wrapping_add(7), n[10]];
        assert_eq!(out.view().to_vec::<u32>().unwrap(), expected);
        // SAFETY: as above.
        unsafe { launch(kernel, SMALL, &bytes) }.unwrap();
        assert_eq!(out.head(8).to_vec::<u32>().unwrap(), [4, 2, 1, 128, 1, 1, 0, 1]);
        // The driver's kernel says in the hundreds of the last word whether it was started early.
        for (cluster, expected) in [(1, 101), (2, 102)] {
            // SAFETY: as above.
            unsafe { launch(kernel, Geometry { cluster, early: true, ..SMALL }, &bytes) }.unwrap();
            assert_eq!(out.head(8).to_vec::<u32>().unwrap()[7], expected);
        }
    });
}

#[test]
fn no_kernel_is_started_early_before_hopper() {
    alone("no_kernel_is_started_early_before_hopper", &[("FAKE_CHIP", "89")], || {
        let kernel = kernel("add").unwrap();
        let out = tensor(GPU, &[11]);
        let bytes = arguments(&out, 2, 7);
        // SAFETY: the driver's kernel writes 8 words and adds to 2.
        unsafe { launch(kernel, Geometry { early: true, ..SMALL }, &bytes) }.unwrap();
        assert_eq!(out.head(8).to_vec::<u32>().unwrap()[7], 1);
    });
}

#[test]
fn a_launch_that_does_not_fit_is_refused_before_the_driver_sees_it() {
    alone("a_launch_that_does_not_fit_is_refused_before_the_driver_sees_it", &[], || {
        let kernel = kernel("add").unwrap();
        let refused = |geometry, bytes: &[u8]| {
            // SAFETY: never started.
            unsafe { launch(kernel, geometry, bytes) }.unwrap_err().to_string()
        };
        let bytes = [0; 16];
        for (geometry, message) in [
            (
                Geometry { block: 512, ..SMALL },
                "was started with 512 threads a block; it was compiled for 256",
            ),
            (
                Geometry { shared_bytes: 232_440, ..SMALL },
                "needs 232440 bytes of shared memory a block; cuda:0 has 232432 for it",
            ),
            (
                Geometry { grid: [1, 65_536, 1], ..SMALL },
                "was started with a grid of [1, 65536, 1] blocks; a device takes [2147483647, 65535, 65535]",
            ),
            (Geometry { cluster: 3, ..SMALL }, "was started with 4 blocks in clusters of 3"),
        ] {
            assert_eq!(refused(geometry, &bytes), format!("the kernel `add<u32>` {message}"));
        }
        assert!(
            refused(Geometry { block: 0, ..SMALL }, &bytes).contains("without blocks or threads")
        );
        let error = refused(SMALL, &bytes[1..]);
        assert_eq!(error, "the kernel `add<u32>` takes 16 bytes of arguments, and was given 15");
    });
}

#[test]
fn code_that_is_not_code_and_kernels_of_several_arguments_are_refused() {
    alone("code_that_is_not_code_and_kernels_of_several_arguments_are_refused", &[], || {
        let error = kernel("several").err().unwrap().to_string();
        assert_eq!(
            error,
            "the kernel `add<u32>` takes several arguments; expected one struct by value"
        );
        let error = kernel("missing").err().unwrap().to_string();
        assert_eq!(
            error,
            "cuModuleGetFunction failed: words of the driver (CUDA_ERROR_NOT_FOUND, 500)"
        );
        let compiled = Compiled { symbol: "add".to_owned(), cubin: b"no code".to_vec() };
        let error = Function::load(0, "add<u32>", &compiled).err().unwrap().to_string();
        assert!(error.starts_with("the code of `add<u32>` does not load on cuda:0 (Pretended GPU 0, sm_90a; the driver supports CUDA 13.0): cuModuleLoadData failed"), "{error}");
    });
}

#[test]
fn a_kernel_that_failed_is_said_to_have_spoiled_the_device() {
    alone(
        "a_kernel_that_failed_is_said_to_have_spoiled_the_device",
        &[("FAKE_LAUNCH", "700")],
        || {
            // SAFETY: never started.
            let error =
                unsafe { launch(kernel("add").unwrap(), SMALL, &[0; 16]) }.unwrap_err().to_string();
            assert!(error.starts_with("`add<u32>` with Geometry"), "{error}");
            assert!(
                error.contains("cuLaunchKernelEx failed") && error.contains("compute-sanitizer"),
                "{error}"
            );
        },
    );
}

#[test]
fn a_graph_runs_what_was_recorded_as_often_as_it_is_started() {
    alone("a_graph_runs_what_was_recorded_as_often_as_it_is_started", &[], || {
        let kernel = kernel("add").unwrap();
        let out = Tensor::zeros(GPU, DType::U32, &[9]).unwrap();
        let mut copy = Tensor::zeros(GPU, DType::U32, &[9]).unwrap();
        let count = |out: &Tensor| out.view().to_vec::<u32>().unwrap()[8];
        let mut step = |add, fill: bool| {
            // SAFETY: the driver's kernel writes 8 words and adds to 1.
            unsafe { launch(kernel, SMALL, &arguments(&out, 1, add)) }?;
            if fill {
                copy.view_mut().fill_zero()?;
            }
            copy.view_mut().copy_from(out.view())
        };
        step(1, false).unwrap();
        let mut graph = Graph::capture(0, || step(10, false)).unwrap();
        assert_eq!((graph.nodes(), count(&out)), (2, 1), "recording runs nothing");
        graph.launch().unwrap();
        graph.launch().unwrap();
        assert_eq!(count(&out), 21);
        graph.update(|| step(100, false)).unwrap();
        graph.launch().unwrap();
        assert_eq!(count(&out), 121);
        // Another number of nodes needs another executable.
        graph.update(|| step(1000, true)).unwrap();
        assert_eq!(graph.nodes(), 3);
        graph.launch().unwrap();
        assert_eq!((count(&out), count(&copy)), (1121, 1121));
    });
}

#[test]
fn what_no_graph_can_hold_is_refused_and_ends_the_recording() {
    alone("what_no_graph_can_hold_is_refused_and_ends_the_recording", &[], || {
        let mut device = tensor(GPU, &[4]);
        let mut host = Tensor::zeros(Device::Cpu, DType::U32, &[4]).unwrap();
        let refused = |error: Option<crate::Error>, what: &str| {
            let error = error.expect(what).to_string();
            assert_eq!(
                error,
                format!("{what} cannot be part of a graph, and cuda:0 is capturing one")
            );
        };
        refused(
            Graph::capture(0, || device.view_mut().write(&[1u32; 4])).err(),
            "a copy from the host",
        );
        refused(
            Graph::capture(0, || host.view_mut().copy_from(device.view())).err(),
            "a copy to the host",
        );
        refused(
            Graph::capture(0, || Tensor::zeros(GPU, DType::F32, &[1]).map(|_| ())).err(),
            "reserving memory",
        );
        refused(Graph::capture(0, || synchronize(0)).err(), "waiting for the device");
        refused(Graph::capture(0, || kernel("add").map(|_| ())).err(), "loading a kernel");
        refused(Graph::capture(0, || Graph::capture(0, || Ok(())).map(|_| ())).err(), "a graph");
        let panic = std::panic::AssertUnwindSafe(|| Graph::capture(0, || panic!("in the middle")));
        assert!(std::panic::catch_unwind(panic).is_err());
        // The stream is free again.
        device.view_mut().write(&[1u32; 4]).unwrap();
        assert_eq!(device.view().to_vec::<u32>().unwrap(), [1; 4]);
    });
}

#[test]
fn clusters_are_refused_where_the_chip_has_none() {
    alone("clusters_are_refused_where_the_chip_has_none", &[("FAKE_CHIP", "89")], || {
        let geometry = Geometry { cluster: 2, ..SMALL };
        // SAFETY: never started.
        let error = unsafe { launch(kernel("add").unwrap(), geometry, &[0; 16]) }.unwrap_err();
        assert_eq!(
            error.to_string(),
            "the kernel `add<u32>` needs clusters of 2 blocks, and cuda:0 has none: its compute capability is 8.9"
        );
    });
}

#[test]
fn a_tensor_is_described_to_the_accelerator_as_it_lies_in_memory() {
    alone("a_tensor_is_described_to_the_accelerator_as_it_lies_in_memory", &[], || {
        let tensor = Tensor::zeros(GPU, DType::BF16, &[100, 64]).unwrap();
        let tiles = TensorTiles {
            address: tensor.view().address(),
            dtype: DType::BF16,
            dims: &[64, 100],
            strides: &[128],
            tile: &[64, 32],
            swizzle: 128,
        };
        let map = tensor_map(0, &tiles).unwrap();
        assert_eq!(map[..6], [9, 2, tiles.address, 3, 64, 100]);
        assert_eq!(map[10..12], [64, 32 + (128 << 16)]);
        let refused = |tiles| tensor_map(0, &tiles).unwrap_err().to_string();
        assert!(refused(TensorTiles { swizzle: 16, ..tiles }).starts_with("16 is no swizzle"));
        assert!(refused(TensorTiles { strides: &[], ..tiles }).starts_with("dimensions, tile"));
        let error = refused(TensorTiles { address: tiles.address + 2, ..tiles });
        assert!(error.starts_with("cuTensorMapEncodeTiled failed"), "{error}");
    });
}

#[test]
fn events_measure_the_device_s_time() {
    alone("events_measure_the_device_s_time", &[], || {
        let (mut first, mut second) = (Event::new(0).unwrap(), Event::new(0).unwrap());
        assert!(second.milliseconds_since(&first).is_err(), "never set");
        first.record().unwrap();
        second.record().unwrap();
        assert_eq!(second.milliseconds_since(&first).unwrap(), 1.5);
    });
}

#[test]
fn a_driver_of_cuda_12_measures_time_by_the_function_s_older_name() {
    alone("a_driver_of_cuda_12_measures_time_by_the_function_s_older_name", &[], || {
        let folder = tempfile::tempdir().unwrap();
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/cuda/tests/driver.c");
        let built = Command::new("cc")
            .args(["-shared", "-fPIC", "-pthread", "-DcuEventElapsedTime_v2=cuEventElapsedTime"])
            .arg("-o")
            .args([&folder.path().join("libcuda.so.1"), &source])
            .status();
        assert!(built.unwrap().success());
        // SAFETY: this process runs this test alone.
        unsafe { std::env::set_var(LIBRARIES_VARIABLE, folder.path()) };
        let (mut first, mut second) = (Event::new(0).unwrap(), Event::new(0).unwrap());
        first.record().unwrap();
        second.record().unwrap();
        assert_eq!(second.milliseconds_since(&first).unwrap(), 1.5);
    });
}

#[test]
fn a_kernel_from_text_is_compiled_kept_on_disk_and_found_again() {
    let folder = tempfile::tempdir().unwrap();
    let cache = folder.path().to_str().unwrap().to_owned();
    let Some(driver) = pretended_driver() else { return };
    let compilers = std::env::var_os(LIBRARIES_VARIABLE).unwrap_or_default();
    let libraries = [driver].into_iter().chain(std::env::split_paths(&compilers));
    let libraries = std::env::join_paths(libraries).unwrap();
    let settings =
        [(CACHE_VARIABLE, cache.as_str()), (LIBRARIES_VARIABLE, libraries.to_str().unwrap())];
    alone("a_kernel_from_text_is_compiled_kept_on_disk_and_found_again", &settings, || {
        if let Err(error) = compiler_library() {
            return println!("skipped: {error}");
        }
        let program = Program {
            name: "add/add.cu",
            source: "struct Add { unsigned *out; unsigned count, add; };\n\
                     template <class T> __global__ void add(Add args) {}\n",
            headers: &[],
        };
        let kernels = [(program, "add<float>"), (program, "add<int>")];
        warm(0, &kernels).unwrap();
        let files = std::fs::read_dir(kernel_cache().unwrap()).unwrap().count();
        assert_eq!(files, 2);
        let out = Tensor::zeros(GPU, DType::U32, &[8]).unwrap();
        let found = function(0, &program, "add<int>").unwrap();
        // SAFETY: the driver's kernel writes 8 words.
        unsafe { launch(found, SMALL, &arguments(&out, 0, 0)) }.unwrap();
        assert_eq!(out.view().to_vec::<u32>().unwrap(), [4, 2, 1, 128, 1, 1, 0, 1]);
        let error = warm(0, &[(program, "ad<int>"), kernels[0]]).unwrap_err().to_string();
        assert!(
            error.starts_with("`ad<int>` of add/add.cu does not compile for sm_90a"),
            "{error}"
        );
    });
}
