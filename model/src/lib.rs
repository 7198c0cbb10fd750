//! A decoder: its configuration, its weights in one flat arena, its tokenizer and its chat template.
//!
//! A model folder is a Hugging Face folder. [`Config`] reads its `config.json`, [`Layout`] says where every parameter lies
//! in one buffer, and [`Weights`] is that buffer.

mod config;
mod error;
mod keys;
mod layout;
mod rope;
mod weights;

pub use config::{Architecture, Config, RopeScaling};
pub use error::{Error, Result};
pub use layout::{LayerLayout, Layout, NamedTensor};
pub use rope::rope_tables;
pub use weights::Weights;
