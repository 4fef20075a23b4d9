"""The guard of lasa inside vLLM.

plugin.py        the entry point: guarded classes replace vLLM's models and its renderer, and nothing else is served
architectures.py which classes, and which renderer
settings.py      what the operator sets
engine.py        what an engine must be like to be guarded
prompting.py     what the guard knows of the tokenizer: the condition, the end of every prompt
renderer.py      prompts are rendered as the interpreter knows them, or refused
models.py        read: the hidden state of the read point, inside the model's own forward pass
fingerprint.py   the weights that vLLM loads are those the interpreter was trained on
decisions.py     decide: score to decision, on the device, handed from the model to the sampler
processor_v1.py  condition: force the condition's tokens (V1 model runner)
processor_v2.py  the same for the V2 model runner
listening.py     answers are read again, and stopped
scheduler.py     the condition is no part of the answer, nor of its length

"""
