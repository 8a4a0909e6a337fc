"""The examples of `demo`: queries with a few documents each, in several scripts and languages."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Example:
    """One query and its documents.

    Attributes:
        title: What the example shows.
        query: The search text.
        documents: Texts to rank, in no particular order.
        best: Index of the document that should rank first.
    """

    title: str
    query: str
    documents: tuple[str, ...]
    best: int


EXAMPLES = (
    Example(
        "Chinese, with a document that shares words but not the subject with the query",
        "如何提高深度学习模型的泛化能力？",
        (
            "深度学习框架对比：TensorFlow vs PyTorch",
            "正则化技术详解：Dropout 与 BatchNorm 的作用机制",
            "数据增强、正则化和早停法是提升泛化性能的有效手段。",
        ),
        best=2,
    ),
    Example(
        "Chinese",
        "人工智能的未来趋势",
        (
            "AI 将在医疗、交通等领域发挥更大作用。",
            "苹果公司发布了新款 iPhone。",
            "深度学习模型正朝着更高效的方向发展。",
        ),
        best=0,
    ),
    Example(
        "Chinese query, English documents",
        "如何预防流感？",
        (
            "The central bank raised interest rates by a quarter of a point.",
            "Wearing masks and washing hands frequently can help prevent influenza.",
            "The museum is open from nine to five, except on Mondays.",
        ),
        best=1,
    ),
    Example(
        "English query, documents in Russian, Japanese, Arabic and German",
        "What is the capital of Japan?",
        (
            "Москва является столицей России и крупнейшим городом страны.",
            "東京は日本の首都であり、世界最大の都市圏の一つである。",
            "القاهرة هي عاصمة جمهورية مصر العربية.",
            "Das Rezept braucht drei Eier, Mehl und etwas Milch.",
        ),
        best=1,
    ),
    Example(
        "Russian query, documents in English, Chinese and Thai",
        "Почему небо голубое?",
        (
            "Sunlight is scattered by the molecules of the air, and blue light is scattered most: the sky looks blue.",
            "我们明天坐火车去北京。",
            "ร้านอาหารแห่งนี้มีชื่อเสียงเรื่องต้มยำกุ้ง",
            "The stock exchange closed early before the holiday.",
        ),
        best=0,
    ),
)
