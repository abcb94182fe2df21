"""One measurement of a rival, in a process of its own: its memory is not there while another program is measured.

`beside.py` starts it: `python rivals.py JSON` prints a JSON object. Weights are those of a file that is there already.
"""

import ctypes
import json
import sys
import time


def llama_cpp(job):
    """llama.cpp, through its C interface. `contexts` says for each whether attention is fused (flash)."""
    import llama_cpp as library

    before = memory("VmRSS:")
    library.llama_log_set(QUIET, ctypes.c_void_p(0))
    library.llama_backend_init()
    start = time.perf_counter()
    params = library.llama_model_default_params()
    params.use_extra_bufts = job["repack"]
    model = library.llama_model_load_from_file(job["path"].encode(), params)
    assert model, f"llama.cpp refused {job['path']}"
    vocab = library.llama_vocab_n_tokens(library.llama_model_get_vocab(model))
    found = {"about": f"llama-cpp-python {library.__version__}: "
             + " ".join(library.llama_print_system_info().decode().split()), "contexts": []}
    for flash in job["contexts"]:
        params = library.llama_context_default_params()
        # Whole batches of 256: the cache is as long as what is fed, and attention pads it.
        params.n_ctx = (job["prompt"] + job["tokens"] + 1 + 255) // 256 * 256
        params.n_batch = params.n_ubatch = job["prompt"]
        params.n_threads = params.n_threads_batch = job["threads"]
        params.flash_attn_type = int(flash)
        context = library.llama_init_from_model(model, params)
        assert context, "llama.cpp gave no context"
        if "seconds_to_ready" not in found:
            found["seconds_to_ready"] = time.perf_counter() - start

        def feed(tokens, fresh):
            if fresh:
                library.llama_memory_clear(library.llama_get_memory(context), True)
            array = (ctypes.c_int32 * len(tokens))(*tokens)
            failed = library.llama_decode(context, library.llama_batch_get_one(array, len(tokens)))
            assert failed == 0, f"llama.cpp failed with {failed}"
            library.llama_get_logits_ith(context, -1)

        found["contexts"].append(figures(job, feed, vocab, found, start))
        library.llama_free(context)
    return found | {"peak_bytes": memory("VmHWM:") - before}


QUIET = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)(lambda *_: None)


def transformers(job):
    """transformers with PyTorch in bfloat16; `nf4` has bitsandbytes quantize the layers."""
    import torch
    import transformers as library

    torch.set_num_threads(job["threads"])
    about = f"transformers {library.__version__}, torch {torch.__version__}"
    if job["make"]:
        torch.set_default_dtype(torch.bfloat16)
        library.LlamaForCausalLM(library.LlamaConfig(**job["config"])).save_pretrained(job["path"])
        return {}
    before = memory("VmRSS:")
    start = time.perf_counter()
    how = {}
    if job["nf4"]:
        import bitsandbytes

        about += f", bitsandbytes {bitsandbytes.__version__}"
        # All but the head, which both tools leave alone.
        how["quantization_config"] = library.BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.bfloat16)
    model = library.LlamaForCausalLM.from_pretrained(
        job["path"], dtype=torch.bfloat16, device_map="cpu", **how).eval()
    found = {"about": f"{about} ({torch.backends.cpu.get_cpu_capability()})",
             "seconds_to_ready": time.perf_counter() - start}
    cache = None

    def feed(tokens, fresh):
        nonlocal cache
        with torch.inference_mode():
            cache = model(torch.tensor([tokens]), past_key_values=None if fresh else cache, use_cache=True,
                          logits_to_keep=1).past_key_values

    found["contexts"] = [figures(job, feed, job["config"]["vocab_size"], found, start)]
    return found | {"peak_bytes": memory("VmHWM:") - before}


def figures(job, feed, vocab, found, start):
    """What `bantam bench` measures too: tokens after one, and a prompt to the logits of its last token."""
    tokens = [number * 7919 % vocab for number in range(max(job["prompt"], job["tokens"]))]
    feed(tokens[1:2], True)
    found.setdefault("seconds_to_first_token", time.perf_counter() - start)
    # Page faults and sleeping cores; weights that are repacked when they are first used.
    feed(tokens[:16], True)
    figures = {}
    if "decode" in job["do"]:
        feed(tokens[1:2], True)
        taken = seconds(lambda: [feed([token], False) for token in tokens[:job["tokens"]]])
        figures["decode_tokens_per_s"] = job["tokens"] / taken
    if "prefill" in job["do"]:
        taken = seconds(lambda: feed(tokens[:job["prompt"]], True))
        figures["prefill_tokens_per_s"] = job["prompt"] / taken
    return figures


def seconds(work):
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def memory(key):
    """Bytes of this process."""
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith(key))


if __name__ == "__main__":
    given = json.loads(sys.argv[1])
    print(json.dumps({"llama.cpp": llama_cpp, "transformers": transformers}[given["program"]](given)))
