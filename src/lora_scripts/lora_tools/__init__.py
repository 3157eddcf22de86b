"""The use-cases behind `lora-scripts lora`: one file a verb; what they share stands in sources, writing and proof."""
