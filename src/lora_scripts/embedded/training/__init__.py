"""How the embedded picture models were made: data, tokenizer, VAE, UNet, export, evaluation; and the labeller.

A build-time tool, not needed to use the package. Run ``python -m lora_scripts.embedded.training --help``;
it wants the ``embedded`` extra (resvg-py draws the SVG icons, emoji names them).

    data      four npm tarballs -> pictures.npz + manifest.json
    vae       AutoencoderKL, f = 8, 16 latent channels
    latents   mean and deviation of every training picture, from the VAE's averaged weights
    unet      CLIPTextModel + UNet2DConditionModel, jointly, v-prediction, zero terminal SNR
    export    an ordinary fp16 pipeline folder, with card, concepts and log
    evaluate  nearest real picture of 100 generated names

    labeller-data      five tarballs -> labeller.npz; one style is only measured
    labeller           a small CLIP on names and pictures
    labeller-evaluate  how often the right name is first, beside the nearest picture by pixels
    labeller-export    two towers in fp16, names, temperature

Every stage that trains saves its whole state atomically and continues at the step it reached.
"""
