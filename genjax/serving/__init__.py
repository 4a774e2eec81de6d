"""A run behind HTTP: `python -m experiments.serve --workdir=RUN`.

rows.py      one text that is written: its settings, where it ends, and what may be shown of it
batching.py  rows that are written together, each as if it were alone
bodies.py    what requests may say, and the errors that say what was wrong
texts.py     requests for texts become rows
answers.py   what rows wrote, in the form of the OpenAI interface
app.py       the web application
local.py     the same requests without HTTP, in this process
"""
