//! A decoder: its configuration, its weights in one flat arena, its tokenizer and its chat template.
//!
//! A model folder is a Hugging Face folder: [`folder`] writes it, [`Config`] reads its `config.json`, [`Layout`] says where every parameter lies
//! in one buffer, and [`Weights`] is that buffer.

mod activations;
mod chat_template;
pub mod clock;
mod config;
mod decoder;
mod error;
pub mod folder;
mod generate;
mod gradients;
mod keys;
mod layout;
pub mod lora;
mod offload;
mod optimizer;
mod pack;
mod rope;
mod tokenizer;
mod transfer;
mod value_head;
mod weights;

pub use activations::{Activations, Limits, Mode};
pub use chat_template::{ChatTemplate, Message};
pub use config::{Architecture, Config, RopeScaling};
pub use decoder::Decoder;
pub use error::{Error, Result};
pub use generate::{Completion, Finish, GenerationLimits, Generator, Request, Sampling};
pub use gradients::Gradients;
pub use layout::{LayerLayout, Layout, NamedTensor};
pub use lora::{Adapter, AdapterLayout, LoraSettings};
pub use offload::{Offloaded, Parts};
pub use optimizer::{AdamW, AdamWSettings, Decay, Schedule, StateSettings};
pub use pack::Pack;
pub use rope::rope_tables;
pub use tokenizer::{TextStream, Tokenizer};
pub use transfer::{Upload, on_host};
pub use value_head::{OutputGradients, VALUE_HEAD_FILE, ValueHead};
pub use weights::Weights;
