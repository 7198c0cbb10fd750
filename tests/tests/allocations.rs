//! Planned memory: after a first step that fills its plan, further steps allocate nothing.
//!
//! Counted is every allocation of the process, so this program has one test. The steps run inside a pool of threads, as a
//! run does: work handed to a pool from outside is queued in blocks on the heap, a new one every few dozen products, and that queue is
//! the pool's and not a step's.

use std::alloc::{GlobalAlloc, Layout as MemoryLayout, System};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use prime_model::{
    Activations, AdamW, AdamWSettings, Architecture, Config, Decoder, GenerationLimits, Generator,
    Gradients, Limits, Mode, OutputGradients, Pack, Request, RopeScaling, Sampling, Weights,
};
use prime_runtime::{DType, Device, View};

struct Counting;

static ALLOCATIONS: AtomicUsize = AtomicUsize::new(0);

// SAFETY: every call is passed on to the system's allocator as it came.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: MemoryLayout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: as for the caller.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: MemoryLayout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: as for the caller.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, block: *mut u8, layout: MemoryLayout, size: usize) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: as for the caller.
        unsafe { System.realloc(block, layout, size) }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: MemoryLayout) {
        // SAFETY: as for the caller.
        unsafe { System.dealloc(block, layout) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

fn allocations() -> usize {
    ALLOCATIONS.load(Ordering::Relaxed)
}

/// Large enough that every operation is spread over the threads.
fn config(architecture: Architecture) -> Config {
    Config {
        architecture,
        vocab_size: 500,
        hidden_size: 64,
        intermediate_size: 160,
        num_layers: 2,
        num_heads: 4,
        num_kv_heads: 2,
        head_dim: 16,
        rms_norm_eps: 1e-6,
        rope_theta: 10_000.0,
        rope_scaling: RopeScaling::None,
        tie_word_embeddings: architecture == Architecture::Qwen2,
        qkv_bias: architecture == Architecture::Qwen2,
        output_bias: false,
        qk_norm: architecture == Architecture::Qwen3,
        max_position_embeddings: 512,
        dtype: DType::F32,
        bos_token_id: None,
        eos_token_ids: Vec::new(),
        pad_token_id: None,
        initializer_range: 0.02,
    }
}

const TOKENS: usize = 320;

/// Lengths of prompts and responses of each step's pack. The first fills the plan: its tokens, and its scored rows.
const PACKS: [&[(usize, usize)]; 7] = [
    &[(1, 320)],
    &[(2, 1); 160],
    &[(100, 21), (60, 21), (1, 80), (9, 30)],
    &[(2, 2)],
    &[(7, 1), (30, 200), (11, 0), (4, 3)],
    &[(160, 1), (1, 160)],
    &[(319, 2)],
];

/// Forward, backward with an entropy bonus and values, the same of a critic, and update, over packs refilled in place.
fn training_steps(architecture: Architecture, dtype: DType, mode: Mode) {
    let config = config(architecture);
    let decoder = Decoder::new(&config, Device::Cpu, TOKENS).unwrap();
    let limits = Limits { tokens: TOKENS, picked: TOKENS };
    let mut activations = Activations::new(&config, Device::Cpu, dtype, limits, mode).unwrap();
    let mut weights = Weights::random(&config, dtype, 1).unwrap();
    weights.add_value_head(&config).unwrap();
    let mut gradients = Gradients::zeros(weights.layout().clone(), Device::Cpu).unwrap();
    let settings = AdamWSettings {
        beta1: 0.9,
        beta2: 0.95,
        epsilon: 1e-8,
        weight_decay: 0.01,
        max_gradient_norm: 1.0,
        state: Default::default(),
    };
    let mut optimizer = AdamW::new(&weights, settings).unwrap();
    let mut pack = Pack::with_capacity(TOKENS, TOKENS);
    let text: Vec<u32> = (0..TOKENS as u32).map(|i| i * 7 % 500).collect();
    let d = vec![-0.01f32; TOKENS];
    for (step, lengths) in PACKS.iter().cycle().take(2 * PACKS.len()).enumerate() {
        let before = allocations();
        pack.clear();
        for &(prompt, response) in *lengths {
            pack.push_response(&text[..prompt], &text[..response]);
        }
        decoder.forward(&weights, &pack, 0.9, &mut activations).unwrap();
        let picked = pack.picked.len();
        let d = View::from_slice(&d[..picked], &[picked]);
        let all = OutputGradients { log_probs: Some(d), entropy: Some(d), values: Some(d) };
        decoder.backward_from(&weights, &pack, 0.9, all, &mut activations, &mut gradients).unwrap();
        decoder.forward_values(&weights, &pack, &mut activations).unwrap();
        let values = OutputGradients { values: Some(d), ..OutputGradients::default() };
        decoder
            .backward_from(&weights, &pack, 0.9, values, &mut activations, &mut gradients)
            .unwrap();
        optimizer.update(&mut weights, &gradients, 1e-3).unwrap();
        gradients.clear().unwrap();
        let made = allocations() - before;
        assert!(
            step == 0 || made == 0,
            "{architecture:?} {dtype} {mode:?}: step {step} of {} tokens allocated {made} times",
            pack.tokens.len()
        );
    }
}

/// Allocations of drawing `count` tokens for each of 5 prompts in 3 slots.
fn drawing(generator: &mut Generator, count: usize) -> usize {
    let sampling = Sampling { temperature: 1.0, top_k: 50, top_p: 0.9, min_p: 0.01, seed: 1 };
    let requests: Vec<Request> = (0..5)
        .map(|i| Request {
            prompt: Arc::from([i + 1, 2, 3]),
            sequence: u64::from(i),
            sampling,
            max_new_tokens: count,
        })
        .collect();
    let before = allocations();
    let completions = generator.generate(&requests, &[], |_| ()).unwrap();
    let made = allocations() - before;
    assert!(completions.iter().all(|completion| completion.tokens.len() == count));
    made
}

/// A completion's three lists double as they grow: from 64 tokens to 128 once each. Twice the steps must cost nothing else.
fn decoding_steps(architecture: Architecture, dtype: DType) {
    let config = config(architecture);
    let weights = Weights::random(&config, dtype, 1).unwrap();
    let limits = GenerationLimits { slots: 3, positions: 160, step_tokens: 16 };
    let mut generator = Generator::new(&config, &weights, limits).unwrap();
    drawing(&mut generator, 128);
    let (short, long) = (drawing(&mut generator, 64), drawing(&mut generator, 128));
    assert_eq!(long - short, 5 * 3, "{architecture:?} {dtype}: 64 more steps allocated");
}

#[test]
fn after_a_step_that_fills_its_plan_nothing_is_allocated() {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(2).build().unwrap();
    pool.install(|| {
        for architecture in Architecture::ALL {
            for dtype in [DType::F32, DType::BF16] {
                for mode in [Mode::Train, Mode::TrainCheckpointed] {
                    training_steps(architecture, dtype, mode);
                }
                decoding_steps(architecture, dtype);
            }
        }
    });
}
