//! A published shape with made-up weights, for verbs that measure or plan and need no real ones.

use bantam_model::checkpoint::Dtype;
use bantam_model::families::SHAPES;
use bantam_model::spec::ModelSpec;
use clap::{Args, ValueEnum};

use crate::failure::{Failure, refused, usage};

#[derive(Debug, Clone, Copy, ValueEnum)]
enum DtypeName {
    F32,
    F16,
    Bf16,
}

/// Instead of MODEL.
#[derive(Args)]
pub(crate) struct SyntheticShape {
    /// A published shape with made-up weights instead of a model; `list` names them
    #[arg(long, value_name = "SHAPE", conflicts_with_all = ["place", "named"])]
    synthetic: Option<String>,
    /// Type of made-up weights
    #[arg(long, value_enum, value_name = "TYPE", default_value = "bf16", requires = "synthetic")]
    dtype: DtypeName,
}

impl SyntheticShape {
    /// The names of all shapes, line by line, where they were asked for.
    pub(crate) fn list(&self) -> Option<String> {
        let names: Vec<&str> = SHAPES.iter().map(|(name, _)| *name).collect();
        (self.synthetic.as_deref() == Some("list")).then(|| names.join("\n"))
    }

    /// Name and specification of the shape that was asked for.
    pub(crate) fn spec(&self) -> Result<Option<(&'static str, ModelSpec)>, Failure> {
        let Some(shape) = &self.synthetic else {
            return Ok(None);
        };
        let Some((name, config)) = SHAPES.iter().find(|(name, _)| name == shape) else {
            return Err(usage(format!(
                "--synthetic {shape}: not a shape that is known; see --synthetic list"
            )));
        };
        let spec = ModelSpec::parse(config.as_bytes()).map_err(|error| refused(error.to_string()))?;
        Ok(Some((name, spec)))
    }

    /// Type of its weights.
    pub(crate) fn dtype(&self) -> Dtype {
        match self.dtype {
            DtypeName::F32 => Dtype::F32,
            DtypeName::F16 => Dtype::F16,
            DtypeName::Bf16 => Dtype::Bf16,
        }
    }
}
