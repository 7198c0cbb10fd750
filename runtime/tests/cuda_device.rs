//! The CUDA device itself. Without a GPU and NVRTC, each test says that it was skipped.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use prime_runtime::cuda::{self, Event, Function, Geometry, Graph, Program};
use prime_runtime::{DType, Device, Error, Plan, Tensor};

/// Counts what each thread allocates.
struct Counting;

thread_local! {
    static ALLOCATIONS: Cell<usize> = const { Cell::new(0) };
}

// SAFETY: the system's allocator, with a count beside it.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let _ = ALLOCATIONS.try_with(|count| count.set(count.get() + 1));
        // SAFETY: the caller's promise.
        unsafe { System.alloc(layout) }
    }
    unsafe fn dealloc(&self, start: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise.
        unsafe { System.dealloc(start, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

const GPU: Device = Device::Cuda(0);

/// The device for one test at a time, where kernels can run: while one records a graph, nobody else may start anything.
fn gpu() -> Option<MutexGuard<'static, ()>> {
    static TURN: Mutex<()> = Mutex::new(());
    match cuda::ready(0) {
        Ok(()) => Some(TURN.lock().unwrap_or_else(PoisonError::into_inner)),
        Err(error) => {
            println!("skipped: {error}");
            None
        }
    }
}

/// Writes its geometry to the first eight words, and adds to those that follow.
const ADD: Program = Program {
    name: "add.cu",
    source: r#"
struct Add { unsigned *out; unsigned count, add; };

template <int unused> __global__ void __launch_bounds__(256) add(const Add args) {
    if (blockIdx.x | blockIdx.y | blockIdx.z) return;
    if (threadIdx.x == 0) {
        unsigned shared_bytes, cluster = 1;
        asm("mov.u32 %0, %%dynamic_smem_size;" : "=r"(shared_bytes));
#if __CUDA_ARCH__ >= 900
        asm("mov.u32 %0, %%cluster_nctaid.x;" : "=r"(cluster));
#endif
        const unsigned geometry[8] = {gridDim.x, gridDim.y, gridDim.z, blockDim.x, blockDim.y, blockDim.z, shared_bytes, cluster};
        for (int i = 0; i < 8; i++) args.out[i] = geometry[i];
    }
    for (unsigned i = threadIdx.x; i < args.count; i += blockDim.x) args.out[8 + i] += args.add;
}
"#,
    headers: &[],
};

fn add() -> Function {
    cuda::function(0, &ADD, "add<0>").unwrap()
}

fn arguments(out: &Tensor, count: u32, add: u32) -> [u8; 16] {
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&out.view().address().to_le_bytes());
    bytes[8..12].copy_from_slice(&count.to_le_bytes());
    bytes[12..].copy_from_slice(&add.to_le_bytes());
    bytes
}

fn start(geometry: Geometry, arguments: &[u8; 16]) -> prime_runtime::Result<()> {
    // SAFETY: the tests give tensors of eight words and the count, which live until the device has been waited for.
    unsafe { cuda::launch(add(), geometry, arguments) }
}

const SMALL: Geometry =
    Geometry { grid: [4, 2, 1], block: 128, cluster: 1, shared_bytes: 0, early: false };

fn numbers(count: usize) -> Vec<u32> {
    (0..count as u32).map(|i| i.wrapping_mul(2654435761)).collect()
}

#[test]
fn copies_of_every_size_and_shape_arrive_whole() {
    let Some(_turn) = gpu() else { return };
    let piece = 1 << 20;
    for count in [0, 1, 63, piece - 1, piece, piece + 1, 24 * piece + 7] {
        let values = numbers(count);
        let device = Tensor::from_slice(&values, &[count]).unwrap().to(GPU).unwrap();
        let again = device.to(GPU).unwrap();
        drop(device);
        assert!(again.view().to_vec::<u32>().unwrap() == values, "{count} words");
    }
    for (rows, width) in [(3, 5), (130_000, 9), (6, 1_200_000)] {
        for (to, from) in [(GPU, GPU), (GPU, Device::Cpu), (Device::Cpu, GPU)] {
            let values = numbers(rows * width);
            let source = Tensor::from_slice(&values, &[rows, width]).unwrap().to(from).unwrap();
            let mut target = Tensor::zeros(to, DType::U32, &[rows, width]).unwrap();
            let part = source.view().columns(1..width - 2);
            target.view_mut().into_columns(2..width - 1).copy_from(part).unwrap();
            let found = target.view().to_vec::<u32>().unwrap();
            for (row, found) in found.chunks(width).enumerate() {
                let expected = &values[row * width + 1..(row + 1) * width - 2];
                assert!(found[2..width - 1] == *expected, "row {row} from {from} to {to}");
                assert!(found[..2] == [0, 0] && found[width - 1] == 0, "beside, {from} to {to}");
            }
            target.view_mut().into_columns(0..width - 1).fill_zero().unwrap();
            let left: u64 = target.view().to_vec::<u32>().unwrap().into_iter().map(u64::from).sum();
            assert_eq!(left, 0, "{from} to {to}");
        }
    }
}

#[test]
fn a_kernel_is_started_with_its_geometry_its_shared_memory_and_its_cluster() {
    let Some(_turn) = gpu() else { return };
    let properties = cuda::properties(0).unwrap();
    let resources = add().resources();
    assert_eq!((resources.argument_bytes, resources.most_threads), (16, 256));
    let most = properties.shared_per_block as u32 - 1024;
    let cluster = if properties.chip.major >= 9 { 2 } else { 1 };
    for geometry in [SMALL, Geometry { cluster, shared_bytes: most, ..SMALL }] {
        let n = numbers(11);
        let out = Tensor::from_slice(&n, &[11]).unwrap().to(GPU).unwrap();
        start(geometry, &arguments(&out, 2, 7)).unwrap();
        let expected = [4, 2, 1, 128, 1, 1, geometry.shared_bytes, geometry.cluster];
        let found = out.view().to_vec::<u32>().unwrap();
        assert_eq!(found[..8], expected);
        assert_eq!(found[8..], [n[8].wrapping_add(7), n[9].wrapping_add(7), n[10]]);
    }
    let out = Tensor::zeros(GPU, DType::U32, &[8]).unwrap();
    let too_many = Geometry { block: 512, ..SMALL };
    assert!(start(too_many, &arguments(&out, 0, 0)).is_err());
}

#[test]
fn a_graph_runs_as_often_as_it_is_started_and_takes_over_new_arguments() {
    let Some(_turn) = gpu() else { return };
    let out = Tensor::zeros(GPU, DType::U32, &[9]).unwrap();
    let mut copy = Tensor::zeros(GPU, DType::U32, &[9]).unwrap();
    let mut step = |add, fill: bool| {
        start(SMALL, &arguments(&out, 1, add))?;
        if fill {
            copy.view_mut().fill_zero()?;
        }
        copy.view_mut().copy_from(out.view())
    };
    let count = || out.view().to_vec::<u32>().unwrap()[8];
    step(1, false).unwrap();
    let mut graph = Graph::capture(0, || step(10, false)).unwrap();
    assert_eq!((graph.nodes(), count()), (2, 1));
    graph.launch().unwrap();
    graph.launch().unwrap();
    assert_eq!(count(), 21);
    graph.update(|| step(100, false)).unwrap();
    graph.launch().unwrap();
    assert_eq!(count(), 121);
    graph.update(|| step(1000, true)).unwrap();
    graph.launch().unwrap();
    assert_eq!((graph.nodes(), count()), (3, 1121));
    assert_eq!(copy.view().to_vec::<u32>().unwrap()[8], 1121);
    // A recording that breaks off leaves a device that works.
    let mut host = Tensor::zeros(Device::Cpu, DType::U32, &[9]).unwrap();
    assert!(Graph::capture(0, || host.view_mut().copy_from(out.view())).is_err());
    assert_eq!(count(), 1121);
}

#[test]
fn steps_after_the_first_allocate_nothing_on_the_host() {
    let Some(_turn) = gpu() else { return };
    let mut device = Tensor::zeros(GPU, DType::U32, &[64]).unwrap();
    let mut host = Tensor::zeros(Device::Cpu, DType::U32, &[64]).unwrap();
    let graph = {
        start(SMALL, &arguments(&device, 56, 1)).unwrap();
        Graph::capture(0, || start(SMALL, &arguments(&device, 56, 1))).unwrap()
    };
    let mut step = || -> prime_runtime::Result<()> {
        device.view_mut().write(&[3u32; 64])?;
        start(SMALL, &arguments(&device, 56, 1))?;
        graph.launch()?;
        host.view_mut().copy_from(device.view())?;
        assert_eq!(host.as_slice::<u32>()[8..], [5; 56]);
        Ok(())
    };
    step().unwrap();
    let before = ALLOCATIONS.with(Cell::get);
    for _ in 0..100 {
        step().unwrap();
    }
    assert_eq!(ALLOCATIONS.with(Cell::get) - before, 0);
}

#[test]
fn a_plan_without_room_is_refused_and_the_device_goes_on() {
    let Some(_turn) = gpu() else { return };
    let mut plan = Plan::new();
    plan.add("huge", DType::F32, &[("n", 1 << 40)]);
    plan.add("small", DType::F32, &[("n", 1)]);
    let error = plan.allocate(GPU).err().unwrap();
    println!("{error}");
    assert!(
        matches!(&error, Error::OutOfMemory { free: Some(_), parts, .. } if parts[0].0 == "huge")
    );
    assert_eq!(Tensor::zeros(GPU, DType::F32, &[2]).unwrap().view().to_f32_vec(), [0.0; 2]);
}

#[test]
fn a_large_copy_is_timed_by_events_and_by_the_clock() {
    let Some(_turn) = gpu() else { return };
    let bytes: usize = 256 << 20;
    let host = Tensor::zeros(Device::Cpu, DType::U32, &[bytes / 4]).unwrap();
    let mut device = host.to(GPU).unwrap();
    let (mut before, mut behind) = (Event::new(0).unwrap(), Event::new(0).unwrap());
    let clock = Instant::now();
    before.record().unwrap();
    device.view_mut().copy_from(host.view()).unwrap();
    behind.record().unwrap();
    let (milliseconds, clock) = (behind.milliseconds_since(&before).unwrap(), clock.elapsed());
    let rate = |seconds: f64| bytes as f64 / seconds / 1e9;
    println!(
        "to the device: {:.1} GB/s by events, {:.1} GB/s by the clock",
        rate(f64::from(milliseconds) / 1e3),
        rate(clock.as_secs_f64())
    );
    assert!(milliseconds > 0.0);
    let clock = Instant::now();
    drop(device.to(Device::Cpu).unwrap());
    println!("from the device: {:.1} GB/s by the clock", rate(clock.elapsed().as_secs_f64()));
}
