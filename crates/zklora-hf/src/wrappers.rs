//! Names of tensors that were saved with what had wrapped the model for training.

/// What is wrong with a tensor's name and what can be done, if a wrapper left its mark there. `tensor` is a name as it
/// stands in a file, of a base model or an adapter.
pub(crate) fn wrapper_in(tensor: &str) -> Option<&'static str> {
    let mut parts = tensor.split('.');
    if parts.clone().next() == Some("module") {
        return Some(
            "it begins with module., which DistributedDataParallel or DeepSpeed put there; save the model inside of \
             it: model.module.save_pretrained(...)",
        );
    }
    parts.find_map(|part| match part {
        "_orig_mod" => Some(
            "_orig_mod. was put there by torch.compile; save the model inside of it: \
             model._orig_mod.save_pretrained(...)",
        ),
        "_fsdp_wrapped_module" | "_fpw_module" => Some(
            "it was put there by FSDP; gather the full state and save it under the model's own names: \
             accelerator.unwrap_model(model).save_pretrained(..., state_dict=accelerator.get_state_dict(model))",
        ),
        "_flat_param" | "flat_param" => Some(
            "it is a shard of FSDP, several tensors in one; gather the full state and save that: \
             accelerator.unwrap_model(model).save_pretrained(..., state_dict=accelerator.get_state_dict(model))",
        ),
        "_checkpoint_wrapped_module" => Some(
            "_checkpoint_wrapped_module. was put there by activation checkpointing; save the model under its own names",
        ),
        "_forward_module" => Some(
            "_forward_module. was put there by Lightning's strategy; save the model inside of it with save_pretrained",
        ),
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wrappers_are_known_by_parts_of_names() {
        for (tensor, why) in [
            ("_orig_mod.transformer.wte.weight", "torch.compile"),
            ("base_model.model._orig_mod.model.layers.0.mlp.up_proj.lora_A.weight", "torch.compile"),
            ("module.model.norm.weight", "DistributedDataParallel"),
            ("_fsdp_wrapped_module.model.norm.weight", "put there by FSDP"),
            ("model.layers.0._flat_param", "a shard of FSDP"),
            ("model.layers.0._checkpoint_wrapped_module.mlp.up_proj.weight", "activation checkpointing"),
            ("_forward_module.model.norm.weight", "Lightning"),
        ] {
            assert!(wrapper_in(tensor).unwrap().contains(why), "{tensor}");
        }
        for tensor in ["transformer.wte.weight", "h.0.module.weight", "my_orig_mod.weight"] {
            assert_eq!(wrapper_in(tensor), None, "{tensor}");
        }
    }
}
