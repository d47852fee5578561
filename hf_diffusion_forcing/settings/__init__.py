"""What a call may say: settings of samplers, presets."""
