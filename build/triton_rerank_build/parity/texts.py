"""Real sentences in many scripts, on which an exported graph is compared with PyTorch.

Each language has a query, a document that answers it and one that does not, so that the logits spread.
"""

TRIPLES = (
    (
        "How can I keep bread fresh for longer?",
        "Wrapped in a cotton cloth and kept in a closed box, a loaf stays soft for about three days; frozen "
        "in slices, it keeps for months.",
        "The museum opens at ten and closes at six, except on public holidays.",
    ),
    (
        "如何让面包保存得更久？",
        "把面包用棉布包好放进密封盒里，可以保持松软三天左右；切片冷冻则能存放几个月。",
        "博物馆上午十点开门，下午六点关门，法定节假日除外。",
    ),
    (
        "なぜ空は青く見えるのですか。",
        "太陽の光が大気中の分子に当たると、波長の短い青い光ほど強く散乱されるため、空は青く見えます。",
        "この列車は次の駅で前の車両を切り離しますので、ご注意ください。",
    ),
    (
        "كيف يمكن الوقاية من الإنفلونزا؟",
        "غسل اليدين بانتظام وارتداء الكمامة وتلقي اللقاح السنوي من أهم وسائل الوقاية من الإنفلونزا.",
        "ارتفعت أسعار النفط قليلا في نهاية تعاملات يوم الثلاثاء.",
    ),
    (
        "Почему листья осенью желтеют?",
        "Осенью разрушается зелёный хлорофилл, и становятся видны жёлтые пигменты, которые были в листе всё лето.",
        "Поезд отправляется с третьего пути в семь часов вечера.",
    ),
    (
        "ทำไมทะเลจึงเค็ม",
        "น้ำฝนชะล้างเกลือแร่จากหินและดินลงสู่แม่น้ำแล้วไหลลงทะเล เมื่อน้ำระเหยไปเกลือจึงสะสมอยู่ในทะเล",
        "ร้านอาหารแห่งนี้เปิดทุกวันตั้งแต่เช้าจนถึงเที่ยงคืน",
    ),
    (
        "बारिश कैसे होती है?",
        "सूरज की गर्मी से पानी भाप बनकर ऊपर उठता है, ठंडा होकर बादल बनता है और फिर बूँदों के रूप में बरसता है।",
        "कल शाम को शहर के पुस्तकालय में एक नाटक खेला जाएगा।",
    ),
    (
        "물은 몇 도에서 끓나요?",
        "물은 해수면의 기압에서 섭씨 백 도에 끓지만, 높은 산에서는 기압이 낮아 더 낮은 온도에서 끓습니다.",
        "이 공원에는 자전거를 빌려주는 곳이 두 군데 있습니다.",
    ),
    (
        "Πόσο γρήγορα ταξιδεύει το φως;",
        "Στο κενό το φως διανύει περίπου τριακόσιες χιλιάδες χιλιόμετρα κάθε δευτερόλεπτο.",
        "Η αγορά του χωριού γίνεται κάθε Σάββατο πρωί στην πλατεία.",
    ),
    (
        "Wie entstehen Gezeiten?",
        "Vor allem die Anziehung des Mondes hebt das Wasser der Ozeane an; weil sich die Erde dreht, "
        "wechseln Ebbe und Flut.",
        "Der Fahrstuhl ist wegen Wartungsarbeiten bis Freitag außer Betrieb. 🙂",
    ),
)

# Same language and across languages: (query, document).
PAIRS = tuple(
    [(query, relevant) for query, relevant, _ in TRIPLES]
    + [(query, other) for query, _, other in TRIPLES]
    + [(TRIPLES[0][0], TRIPLES[1][1]), (TRIPLES[1][0], TRIPLES[0][1]), (TRIPLES[3][0], TRIPLES[4][1])]
)

# What a careless crawler sends: special tokens as text, stray spaces, controls, ligatures, emoji, nothing.
HARD_PAIRS = (
    ("", ""),
    ("   ", "\t\n"),
    (
        "what is </s> in a document?",
        "A </s> closes a text, <s> opens it, <pad> and <mask> and [SEP] are others.",
    ),
    (
        "ﬁne  ﬂuﬀy   ｆｕｌｌｗｉｄｔｈ",
        "e\u0301 and é, \u200bzero width, \u00adsoft hyphen, \ufeffmark, \x01control",
    ),
    ("👩‍👩‍👧‍👦 family?", "🏳️‍🌈🇯🇵 emoji مع عربي and 漢字カナ mixed ทั้งหมด in one line"),
    # In a query a separator must not end the query, and padding must not end the row.
    (
        "[SEP] or [MASK] or [PAD] in a query [CLS] [UNK] [SEP]",
        "[SEP] a document [PAD] with [MASK] and [CLS] [UNK] too [SEP] [PAD]",
    ),
    (
        "</s> or <mask> or <pad> in a query <s> <unk> </s>",
        "</s> a document <pad> with <mask> and <s> <unk> too </s> <pad>",
    ),
)
