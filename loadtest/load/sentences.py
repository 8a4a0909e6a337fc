"""Sentences from which the workload builds its texts: (language, tokens per character, lines).

The ratio of tokens per character was counted with XLM-R's vocabulary on these sentences; it sets the length of the
documents. The first line of each language is a query.
"""

SENTENCES = (
    (
        "en",
        0.23,
        (
            "how to keep a sourdough starter alive while travelling",
            "The committee met on Tuesday to discuss the new rules for renewable energy in coastal regions.",
            "Most users reset their password from the sign-in page and receive a link within a minute.",
            "A loaf wrapped in cotton stays soft for about three days; frozen in slices it keeps for months.",
            "Shipping is free above fifty euros, and returns are accepted for thirty days after delivery.",
            "Researchers measured the temperature of the lake at four depths every hour for two years.",
            "Before you replace the filter, switch the machine off and let it cool for half an hour.",
        ),
    ),
    (
        "de",
        0.25,
        (
            "Kündigungsfrist bei befristetem Mietvertrag",
            "Der Fahrstuhl ist wegen Wartungsarbeiten bis Freitag außer Betrieb, bitte benutzen Sie die Treppe.",
            "Vor allem die Anziehung des Mondes hebt das Wasser der Ozeane an, und so wechseln Ebbe und Flut.",
            "Wer den Vertrag vor Ablauf der Frist beenden will, muss dies schriftlich und mit Begründung tun.",
            "Das Museum zeigt bis zum Herbst Zeichnungen aus dem neunzehnten Jahrhundert.",
            "Für den Teig werden Mehl, Wasser, Salz und etwas Hefe zehn Minuten lang geknetet.",
        ),
    ),
    (
        "fr",
        0.26,
        (
            "comment renouveler un passeport à l'étranger",
            "La demande se fait au consulat, sur rendez-vous, avec deux photos et un justificatif de domicile.",
            "Le train de huit heures desservira exceptionnellement toutes les gares jusqu'à Lyon.",
            "Les vendanges ont commencé deux semaines plus tôt que d'habitude à cause de la chaleur.",
            "Il suffit de mélanger la farine et les œufs, puis d'ajouter le lait peu à peu.",
            "Le tribunal a jugé que la clause était abusive et l'a déclarée nulle.",
        ),
    ),
    (
        "es",
        0.24,
        (
            "síntomas de la falta de hierro en adultos",
            "El cansancio, la palidez y la falta de aire al subir escaleras son los signos más frecuentes.",
            "La biblioteca abre de lunes a sábado y cierra los días festivos.",
            "El precio del aceite subió por tercer mes seguido tras una mala cosecha.",
            "Para reiniciar el equipo mantenga pulsado el botón durante diez segundos.",
            "El río nace en la sierra y desemboca en el mar después de doscientos kilómetros.",
        ),
    ),
    (
        "ru",
        0.25,
        (
            "почему листья осенью желтеют",
            "Осенью разрушается зелёный хлорофилл, и становятся видны жёлтые пигменты, бывшие в листе всё лето.",
            "Поезд отправляется с третьего пути в семь часов вечера и прибывает на следующее утро.",
            "Заявление можно подать через интернет, приложив копию паспорта и справку с места работы.",
            "В музее открылась выставка старинных карт, на которой представлено более ста экспонатов.",
            "Температура воды в озере летом редко поднимается выше двадцати градусов.",
        ),
    ),
    (
        "zh",
        0.66,
        (
            "如何让面包保存得更久",
            "把面包用棉布包好放进密封盒里，可以保持松软三天左右；切片冷冻则能存放几个月。",
            "博物馆上午十点开门，下午六点关门，法定节假日除外。",
            "数据增强、正则化和早停法是提升泛化性能的有效手段，但都需要仔细调整参数。",
            "这条高速铁路全长一千三百公里，最快只需要四个半小时就能到达。",
            "申请人应当在三十日内提交身份证明和收入证明，逾期不予受理。",
        ),
    ),
    (
        "ja",
        0.55,
        (
            "空が青く見える理由",
            "太陽の光が大気中の分子に当たると、波長の短い青い光ほど強く散乱されるため、空は青く見えます。",
            "この列車は次の駅で前の車両を切り離しますので、ご注意ください。",
            "商品到着後七日以内であれば、未使用のものに限り返品を承ります。",
            "古い町並みが残るこの通りには、江戸時代から続く店が並んでいます。",
            "会議の資料は前日までに共有フォルダーに入れておいてください。",
        ),
    ),
    (
        "ko",
        0.5,
        (
            "물은 몇 도에서 끓나요",
            "물은 해수면의 기압에서 섭씨 백 도에 끓지만, 높은 산에서는 더 낮은 온도에서 끓습니다.",
            "이 공원에는 자전거를 빌려주는 곳이 두 군데 있으며 아침 아홉 시에 문을 엽니다.",
            "주문하신 상품은 결제가 확인된 다음 날 발송됩니다.",
            "연구팀은 지난 십 년 동안의 기온과 강수량 자료를 비교했습니다.",
        ),
    ),
    (
        "ar",
        0.3,
        (
            "كيف يمكن الوقاية من الإنفلونزا",
            "غسل اليدين بانتظام وارتداء الكمامة وتلقي اللقاح السنوي من أهم وسائل الوقاية من الإنفلونزا.",
            "ارتفعت أسعار النفط قليلا في نهاية تعاملات يوم الثلاثاء بعد ثلاثة أيام من التراجع.",
            "تفتح المكتبة أبوابها من الساعة الثامنة صباحا حتى السادسة مساء طوال أيام الأسبوع.",
            "يمتد النهر أكثر من ألف كيلومتر قبل أن يصب في البحر.",
        ),
    ),
    (
        "hi",
        0.3,
        (
            "बारिश कैसे होती है",
            "सूरज की गर्मी से पानी भाप बनकर ऊपर उठता है, ठंडा होकर बादल बनता है और फिर बूँदों के रूप में बरसता है।",
            "कल शाम को शहर के पुस्तकालय में एक नाटक खेला जाएगा।",
            "आवेदन के साथ पहचान पत्र और दो तस्वीरें लगाना ज़रूरी है।",
            "रेलगाड़ी सुबह सात बजे चलती है और दोपहर तक पहुँच जाती है।",
        ),
    ),
    (
        "th",
        0.35,
        (
            "ทำไมทะเลจึงเค็ม",
            "น้ำฝนชะล้างเกลือแร่จากหินและดินลงสู่แม่น้ำแล้วไหลลงทะเล เมื่อน้ำระเหยไปเกลือจึงสะสมอยู่ในทะเล",
            "ร้านอาหารแห่งนี้เปิดทุกวันตั้งแต่เช้าจนถึงเที่ยงคืน ยกเว้นวันหยุดราชการ",
            "ผู้สมัครต้องส่งเอกสารภายในสามสิบวันหลังจากวันที่ประกาศผล",
        ),
    ),
)
