"""How fast prompts are learned: many in one batch against one after another, and against PEFT."""
