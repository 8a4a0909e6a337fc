"""Pairs in five scripts: 20 queries, 10 documents, 200 pairs of very different length and relevance."""

QUERIES = (
    "how do vaccines work",
    "What is the boiling point of water at high altitude?",
    "train tickets from Lyon to Paris",
    "python read csv file line by line",
    "如何预防流感？",
    "北京到上海的高铁需要多长时间",
    "为什么天空是蓝色的",
    "怎样学习一门新的语言",
    "日本で一番高い山は何ですか",
    "美味しいラーメンの作り方",
    "地震が起きたときにするべきこと",
    "猫の平均寿命",
    "ما هي عاصمة فرنسا؟",
    "كيف أتعلم البرمجة من الصفر",
    "فوائد شرب الماء",
    "متى تأسست الأمم المتحدة",
    "Кто написал «Войну и мир»?",
    "как правильно поливать орхидеи",
    "столица Японии",
    "что делать при простуде",
)

DOCUMENTS = (
    "Vaccines train the immune system to recognise a virus before it meets the real one.",
    "At sea level water boils at 100 degrees Celsius; on a mountain of 3,000 metres it boils at about 90, because "
    "the pressure of the air is lower. Cooking therefore takes longer, and recipes for high places say so. " * 6,
    "勤洗手、戴口罩、接种疫苗是预防流感的有效方法。",
    "京沪高速铁路全长一千三百多公里，最快的列车从北京南站到上海虹桥站只需四个多小时。" * 8,
    "富士山は標高3776メートルで、日本で最も高い山です。",
    "地震のときは、まず机の下に隠れて頭を守り、揺れが収まってから火を消し、出口を確保しましょう。" * 4,
    "باريس هي عاصمة فرنسا وأكبر مدنها من حيث عدد السكان.",
    "شرب الماء بانتظام يساعد الجسم على التخلص من السموم ويحافظ على نضارة البشرة. " * 12,
    "Роман «Война и мир» написал Лев Николаевич Толстой.",
    "При простуде врачи советуют больше пить, отдыхать и проветривать комнату; 🤒 если жар держится, нужен врач. " * 9,
)

PAIRS = [(query, document) for query in QUERIES for document in DOCUMENTS]
