"""Fine-tuning: a task's data, head and loss on the parallel engine and the training loop of pretraining."""
