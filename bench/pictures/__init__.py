"""Time training of a picture LoRA: ours, and a plain loop after diffusers' documented recipe.

    python -m bench.pictures [--case embedded|shape|both] [--repeats 2] [--steps N] [--json FILE]

The sides run in turn (A B C A B C), each run in a process of its own, one at a time, with torch's own
number of threads.

Cases:

    embedded    the model that comes with the package, the 60 pictures of examples/style_high_contrast at 64 px,
                batch 16, 200 steps (50 epochs of 4).
    shape       a UNet of exactly Stable Diffusion 1.5's shape (860 M parameters), with that model's text encoder and
                autoencoder, all with random weights in half precision on the disk; 256 px, batch 1, 10 steps.

Alike on all sides: pictures and captions; LoRA rank 8, alpha 8, on the UNet's attention, pairs in float32; AdamW at
1e-4 (embedded: 2e-3) with decay 0.01, constant rate, gradients clipped to norm 1; squared error against
noise or v; no preview, no validation, no intermediate checkpoint; the LoRA saved as diffusers saves it.

What differs:

    ours            the package's `app.train` with defaults: encodes every picture and caption once, before the first
                    step, and lets the encoders go; holds the frozen UNet in bf16 where the CPU multiplies bf16 fast
                    (else float32). Hashes the base, rehearses a step, writes events, curves, a checkpoint, two LoRA
                    files, reads both back and compares: all of it counts as job time.
    recipe-float32  what examples/text_to_image/train_text_to_image_lora.py of diffusers does by default, written out
                    here: UNet, text encoder and autoencoder in float32; every step encodes its pictures and captions,
                    adds noise by the scheduler, predicts, goes back.
    recipe-bf16     the same with `--mixed_precision bf16`: frozen parts held in bf16, pairs in float32, autocast.

How it is measured:

    steps/s         over the steps but the first, whose kernels are cold. A step of a recipe holds its encoding, since
                    the recipe encodes there; ours has done it before, which its job time shows.
    job s           from starting the process to its end: imports, loading, training, saving.
    peak GB         the process's largest resident size, as the system counts it (ru_maxrss), in 10^9 bytes.
    of the rate     operations of a step (forward and backward of the UNet with its pairs, counted by torch on the meta
                    device) by its seconds, as a share of what a 2048 x 2048 matrix product in the side's number format
                    reached right before the runs.
    loss            after the run, outside the timed part, by one function for all: plain diffusers in float32 with the
                    saved LoRA, on all pictures at fixed noise and noise levels (case embedded only).
"""
