"""One file a base-model architecture; see `contracts.Family`. A leading underscore marks a shared part."""
