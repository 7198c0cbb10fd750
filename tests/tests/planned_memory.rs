//! What `prime plan` counts is what a run reserves: bytes of the process, before and after a trainer and its first step.
//!
//! Counted is every allocation of the process, so this program has one test.

use std::alloc::{GlobalAlloc, Layout as MemoryLayout, System};
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};

use prime::adapters::{self, Owner};
use prime::memory::{self, Shapes};
use prime::setup;
use prime::trainer::{Model, Trainer};
use prime_tests::runs;

struct Counting;

static HELD: AtomicUsize = AtomicUsize::new(0);

// SAFETY: every call is passed on to the system's allocator as it came.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: MemoryLayout) -> *mut u8 {
        HELD.fetch_add(layout.size(), Ordering::Relaxed);
        // SAFETY: as for the caller.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: MemoryLayout) -> *mut u8 {
        HELD.fetch_add(layout.size(), Ordering::Relaxed);
        // SAFETY: as for the caller.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, block: *mut u8, layout: MemoryLayout, size: usize) -> *mut u8 {
        HELD.fetch_add(size, Ordering::Relaxed);
        HELD.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: as for the caller.
        unsafe { System.realloc(block, layout, size) }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: MemoryLayout) {
        HELD.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: as for the caller.
        unsafe { System.dealloc(block, layout) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

const SETTINGS: [&str; 16] = [
    "model.hidden_size=128",
    "model.num_layers=3",
    "model.num_heads=4",
    "model.num_kv_heads=2",
    "model.head_dim=32",
    "model.intermediate_size=352",
    "sft.steps=0",
    "prm.reference=frozen",
    "prm.warmup_batches=0",
    "train.compare=false",
    "train.micro_batch_tokens=1024",
    "rollout.slots=16",
    "rollout.pass_tokens=64",
    "rollout.prompts=4",
    "rollout.max_prompt_tokens=40",
    "rollout.max_new_tokens=24",
];

#[test]
fn a_run_reserves_what_was_planned() {
    let variants: [&[&str]; 6] = [
        &[],
        &["policy.optimizer_state=int8", "prm.optimizer_state=int8"],
        &["model.dtype=bfloat16"],
        &["model.dtype=bfloat16", "policy.master_weights=none", "prm.master_weights=none"],
        &["train.checkpoint_activations=true", "lora.rank=8"],
        &[
            "lora.rank=4",
            "lora.prm_rank=16",
            "lora.targets=[\"q_proj\", \"down_proj\"]",
            "rollout.slots=8",
        ],
    ];
    for variant in variants {
        let settings: Vec<&str> = SETTINGS.iter().chain(variant).copied().collect();
        let config = runs::config(&settings).unwrap();
        let prompts = setup::prompts(&config, None).unwrap();
        let before = HELD.load(Ordering::Relaxed);
        let start = setup::base_model(&config, &prompts).unwrap();
        let shape = start.config.clone();
        let (policy, prm, reference): (Model, Model, Model) =
            match (config.lora.policy(), config.lora.prm()) {
                (Some(lora), Some(prm)) => {
                    let base = Path::new("base");
                    let attach =
                        |lora, owner| adapters::attach(&start, lora, base, 1, owner).unwrap();
                    let reference = adapters::frozen(&config, &start).unwrap();
                    (attach(&lora, Owner::Policy), attach(&prm, Owner::Prm), reference)
                }
                _ => {
                    let copy = || start.duplicate().unwrap();
                    let (prm, reference) = (copy(), copy());
                    (start, prm, reference)
                }
            };
        let mut trainer =
            Trainer::new(&config, prompts, policy, Some((prm, Some(reference)))).unwrap();
        let made = HELD.load(Ordering::Relaxed) - before;
        trainer.step(&mut |_| ()).unwrap();
        // What kernels borrow stays in their pool and is no part of a plan; of what a step reserves once, adapters' products are.
        let shapes = Shapes {
            policy: shape.clone(),
            prm: Some(shape.clone()),
            reference: Some(shape),
            critic: None,
            kl_reference: None,
        };
        let rows = memory::rows(&config, &shapes).unwrap();
        let planned = memory::peak(&config, &rows);
        let products = planned.saturating_sub(made);
        // Beside the plan: tables of rotations, lists of packs and of losses, the task and what names things have.
        let beside = 700_000;
        let tokens = config.micro_batch_tokens();
        let most_products = 2 * 4 * tokens * 64;
        let is_adapted = config.lora.rank > 0;
        assert!(
            made <= planned + beside && products <= if is_adapted { most_products } else { 0 },
            "{variant:?}: reserved {made}, planned {planned}"
        );
        drop(trainer);
    }
}
