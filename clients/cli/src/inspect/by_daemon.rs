//! The same of a model whose files are another machine's: what its daemon tells of it. Windows, soft caps and which
//! tensors there are by name stay with the files, unless `--tensors` asks for them.

use bantam_daemon::carried;
use bantam_proto::v1;
use serde_json::{Map, Value, json};

use super::Inspect;
use crate::daemon::Link;
use crate::failure::{Failure, refused};
use crate::output;

impl Inspect {
    pub(super) fn by_daemon(&self, link: &Link) -> Result<(), Failure> {
        if self.tensor.is_some() {
            return Err(refused(
                "--tensor: a daemon sends no weights; give the model's folder on this machine, and no --connect",
            ));
        }
        let request =
            v1::InspectRequest { model: link.model(self.model.path()), tensors: self.tensors || self.json };
        let mut client = link.models();
        let told = link.wait(client.inspect(link.request(request)));
        let told = told.map_err(|status| link.failure(&status))?.into_inner();
        match self.json {
            true => Ok(output::json(&as_json(&told))?),
            false => Ok(output::line(&self.told_as_text(&told))?),
        }
    }

    fn told_as_text(&self, told: &v1::InspectResponse) -> String {
        let heads = format!("{} of {}, {} for keys and values", told.heads, told.head_width, told.kv_heads);
        let parameters = format!("{} ({})", output::count(told.parameters), told.parameters);
        let head = if told.tied_head { "the embedding" } else { "its own matrix" };
        let mut rows = vec![
            ("family", told.family.clone()),
            ("parameters", parameters),
            ("layers", told.layers.to_string()),
            ("hidden", told.hidden.to_string()),
            ("heads", heads),
            ("feed-forward", told.feed_forward.to_string()),
        ];
        if told.experts > 0 {
            rows.push((
                "experts",
                format!("{}, of which a token takes {}", told.experts, told.experts_per_token),
            ));
        }
        rows.push(("vocabulary", told.vocab.to_string()));
        rows.push(("head", head.to_owned()));
        rows.push(("context", told.context.to_string()));
        for share in &told.dtypes {
            rows.push((&share.dtype, format!("{} tensors, {}", share.tensors, output::bytes(share.bytes))));
        }
        rows.push(("bits per weight", format!("{:.3}", told.bits_per_weight)));
        rows.push(("read per token", output::bytes(told.bytes_per_token)));
        rows.push(("files", output::bytes(told.file_bytes)));
        if !told.unused_tensors.is_empty() {
            rows.push(("not used", super::names(&told.unused_tensors)));
        }
        let harmless = |text: &str| output::harmless(text).into_owned();
        let rows: Vec<_> = rows.iter().map(|(name, value)| vec![harmless(name), harmless(value)]).collect();
        let name = self.model.path().map_or(carried::LABEL.to_owned(), |path| path.display().to_string());
        let mut text = format!("{name}\n\n{}", output::table(&rows, &[false, false]));
        if self.tensors {
            let row = |tensor: &v1::Tensor| {
                vec![harmless(&tensor.name), harmless(&tensor.dtype), format!("{:?}", tensor.shape)]
            };
            let rows: Vec<_> = told.tensors.iter().map(row).collect();
            text += "\n\n";
            text += &output::table(&rows, &[false, false, false]);
        }
        text
    }
}

/// The keys of an inspection of this process; null is what a daemon does not tell.
fn as_json(told: &v1::InspectResponse) -> Value {
    let share = |share: &v1::DtypeShare| {
        let numbers = json!({ "tensors": share.tensors, "elements": share.elements, "bytes": share.bytes });
        (share.dtype.clone(), numbers)
    };
    let tensor = |tensor: &v1::Tensor| {
        let v1::Tensor { name, dtype, shape, bytes } = tensor;
        json!({ "name": name, "dtype": dtype, "shape": shape, "bytes": bytes })
    };
    let some = |number: u32| Some(number).filter(|number| *number > 0);
    json!({
        "family": told.family,
        "layers": told.layers,
        "hidden": told.hidden,
        "heads": told.heads,
        "kv_heads": told.kv_heads,
        "head_width": told.head_width,
        "windows": Value::Null,
        "attention_cap": Value::Null,
        "feed_forward": told.feed_forward,
        "experts": some(told.experts),
        "experts_per_token": some(told.experts_per_token),
        "logits_cap": Value::Null,
        "vocab": told.vocab,
        "context": told.context,
        "tied_head": told.tied_head,
        "parameters": told.parameters,
        "weight_bytes": told.weight_bytes,
        "file_bytes": told.file_bytes,
        "dtypes": told.dtypes.iter().map(share).collect::<Map<String, Value>>(),
        "bits_per_weight": told.bits_per_weight,
        "bytes_per_token": told.bytes_per_token,
        "unused_tensors": told.unused_tensors,
        "tensors": told.tensors.iter().map(tensor).collect::<Vec<_>>(),
    })
}
