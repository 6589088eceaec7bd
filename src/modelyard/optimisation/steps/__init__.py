"""Techniques of optimisation, each from a network to a network: prune, distil, finetune, train under quantisation. What they
are asked for is in `config`, how people write it in `text`; `chain` runs them one after another."""
