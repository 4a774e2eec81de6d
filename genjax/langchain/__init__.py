"""Classes of LangChain over runs of this project, and over models and encoders of the library transformers.

    model = ChatGenjax(model="runs/instructions", temperature=0)
    chain = GenjaxRetriever(index="runs/index", k=3) | prompt | model | StrOutputParser()

requests.py   opens what a path holds, and asks it; messages of LangChain as requests, answers as messages
chat.py       ChatGenjax: chats, tools, structured output
text.py       GenjaxLLM: texts that are continued, and answers of a model that reads documents
search.py     GenjaxEmbeddings, GenjaxRetriever, GenjaxVectorStore

Texts are written by the engine of genjax/serving, in this process; nothing is loaded from the network.  It needs the
extra: pip install 'genjax[langchain]'.
"""

from genjax.config import ConfigError

try:
    import langchain_core  # noqa: F401
except ImportError:
    raise ConfigError("LangChain's classes need the package langchain-core: pip install 'genjax[langchain]'") from None

from genjax.langchain.chat import ChatGenjax
from genjax.langchain.search import GenjaxEmbeddings, GenjaxRetriever, GenjaxVectorStore
from genjax.langchain.text import GenjaxLLM

__all__ = ["ChatGenjax", "GenjaxEmbeddings", "GenjaxLLM", "GenjaxRetriever", "GenjaxVectorStore"]
