"""The stories: each is one plot, open wherever a tale may differ from the next."""

FRAMES = """
<open>
　ふと見ると、<look>{thing}がない。<house>にも<container>の中にもない。<worry>
<meet>
<ask>
　ふたりは<spot>から<place>まで探した。{thing}は<number>本目の<tree>の根もとで<shine>光っていた。
<part>

<open>
　<place>で、<look>{thing}を一{thing:counter}拾った。<neighbour>に見せ、<neighbour>に見せ、<spot>まで来た。
「<years>年前の{season:month}<date>に失くした{thing}ですよ」{elder}は<how><said>。
　お礼は<crop>が<number>つと、<colour><nut>だった。
<end>

<open>
　からすが{thing}をくわえて逃げた。<spot>を抜け、<shop>の屋根を越え、<place>へ飛んでいく。
　<tree>の木の巣には、{thing}のほかに<colour>ボタンと<nut>があった。<food>と<crop>を差し出すと、からすは{thing}を返してくれた。
<end>

<open>
　風が、{kin}の<colour>帽子を飛ばした。帽子は<spot>を越え、<shop>の前を過ぎ、<place>まで転がった。
　<tree>の下で見つけると、中で<bird>が<number>つの卵を温めている。{kin}には<shop>で、<colour>頭巾を<price>で買って帰った。
<end>

<open>
　<container>の底から、<look>{thing}が出てきた。紙がついている。「<town><address>　{elder}へ」
<walk>
「<years>年待ったよ」{elder}は<how><said>。{thing}は<tree>の箱に入れて、<house>に飾るという。
<end>

<open>
　交番に、<colour><clothes>の{friend}が来た。「{thing}を一{thing:counter}、<place>で落としました」
　届いているのは、<surname>さんの傘が<number>本、<surname>さんの<food>、そして{hero}の届けた<look>{thing}である。
「それです」{friend}は<reaction>。
<part>

<open>
　{hero}に手紙が届いた。<colour>封筒である。
「{season:month}<date>、<place>で<game>をしましょう。持ちもの　①<food>　②<drink>　③<colour>手ぬぐい　　{friend}の<pet><mark>」
<walk>
　{friend}は<tree>の下で、<crop>を<number>つ並べて待っていた。
<part>

<open>
　{hero}は、<place>に住む<surname>さんに手紙を書いた。
「お元気ですか。こちらは<scene>。<food>と<crop>を送ります。<price>の切手をはりました。<month>には会えますね<mark>」
　<shop>の前の郵便箱は、コトリと鳴った。
<end>

<night>
　電話が鳴った。「<place>の{friend}です。<food>を<number>つと、<drink>を<number>杯、お願いします」
　うちは<shop>ではない、と言いかけて、{hero}は寂しそうな声に気がついた。
　届けに行くと、{friend}は<colour>座布団を出して待っていた。
<part>

<open>
　<place>に、<colour>びんが流れついた。中に手紙がある。
「わたしは<land>の<job>です。きのうは<fish>を<number>匹釣りました。そちらには、どんな木がありますか」
　{hero}は<tree>の葉と<nut>を入れて流した。<years>日たち、びんは<food>を詰めて戻ってきた。
<end>

<open>
　学校で、<number>年後の自分に手紙を書いた。
「{hero}へ。<job>になれましたか。<surname>さんとは仲よしですか。<food>は<number>つまでですよ<mark>」
　手紙は<container>に入れて、<spot>の<tree>の下に埋めた。目印は<colour><nut>である。
<end>

<open>
　図書館の本に、<colour>紙がはさんであった。「<place>の<tree>を見よ」
　行ってみると、木のうろにまた紙がある。「<shop>の<number>軒先を見よ」そこにいたのは{elder}だった。
「<years>年前の{season:month}<date>にはさんだ紙だよ」{elder}は<how><said>。<food>を<number>つくれた。
<end>

<night>
　<house>の外に、<colour>星がひとつ落ちてきた。星は<tree>の枝に引っかかり、<food>をほしがった。
「<land>の空から来たのです。腹がへって、もう飛べません」
　<food>を<number>つ、<crop>を<number>つ食べさせると、星は<shine>光って、<place>の空へのぼった。
<end>

<night>
「<drink>を一杯ください」戸口にいたのは、<colour><clothes>の月だった。
　月は<house>に腰かけ、<land>で見た<festival>と、<surname>という<job>の話をした。
　そのあいだの<number>時間、空は暗かった。あくる朝、<neighbour>も<neighbour>も、それを不思議がった。
<end>

<open>
　<place>に雲がひとつ落ちていた。<colour>絵の具をかぶり、空へ戻れないという。
<meet>
「洗えばいいよ」と、<how><said>。ふたりは雲を<container>に入れて<place>の水で洗い、<tree>の枝に<number>日干した。
<part>

<open>
　虹が立った。{hero}は虹の足もとを見に、<spot>から<vehicle>に乗った。
　着いた<place>では、<colour><clothes>の<neighbour>が、虹のはしを<container>にしまっている。
「ひと切れ、<price>だよ」その夜、<house>は<shine>光った。
<end>

<open>
　北風が、<shop>の看板と<spot>の旗と、<neighbour>の<food>を吹き飛ばした。
「<game>をする友だちがほしいんだ」と、北風は<how><said>。
　{hero}は<place>で、北風と<game>をした。<number>回やって、みんな負けた。<scene>。
<end>

<night>
　流れ星が<number>つ、<place>に落ちた。
<meet>
「<vehicle>で拾いに行こう」と、<how><said>。
<together>
　<tree>の下にあったのは、<colour>金平糖だった。
<part>

<night>
　<shop>の戸が鳴った。<colour><clothes>の{friend}が、一{friend:counter}立っている。
「<food>を<number>つ、<drink>を<number>杯ください」代金は<nut>だった。
　留守番の{hero}は<reaction>。あくる朝、それは<look>{thing}に変わっていた。
<part>

<open>
　{hero}は<shop>で働くことになった。主人の<surname>さんが、<colour>紙をはる。
「①朝は<clock>から　②昼は<chore>　③おやつは<food>　④困ったら<drink>」
　初めの日、{hero}は<container>の<crop>をひっくり返した。<worry>
<end>

<open>
　<place>に店ができた。「本日の品　<food>　<price>　　<drink>　<price><mark>」
　主人は<colour><clothes>の{friend}だ。客は<neighbour>、<neighbour>、そして{hero}。
「お代は歌でもいいよ」{friend}は<how><said>。
<part>

<open>
　{hero}の夢は、<land>の<job>になることだ。そこで、<place>に住む{elder}をたずねた。
「まず、<chore>を<number>年、<hobby>のを<number>年だね」{elder}は<how><said>。
　つらい日は、<tree>の下で<food>を食べた。<passed>。
<end>

<open>
　{hero}は<spot>で店を開いた。<nut>が<price>、<crop>が<price>、<look>{thing}が<price>である。
　<clock>になっても客は来ない。<worry>
<meet>
「その{thing}をください」{friend}は、<drink>と<food>を出した。
<part>

<open>
　<neighbour>の店の看板が、風に飛んだ。{hero}は<colour>絵の具で、新しい看板をかいた。
「<food>　<price>　<drink>　<price>　<clock>から<mark>」
　次の日、<bird>と<neighbour>と<neighbour>が、店をのぞきに来た。
<end>

<open>
　{elder}は、<colour><container>に何をしまっているのだろう。
「<land>の<festival>の音と、<tree>の葉の匂いと、<surname>さんの声だよ」{elder}は<how><said>。
　{hero}も、<food>の味と<place>の風を、そっと入れておいた。
<end>

<open>
　<place>の<tree>は、<years>年も花をつけない。{hero}はその下で{instrument}を{instrument:played}。
　<number>日目に<bird>が来た。あくる日は<neighbour>が来た。その次の日、<colour>つぼみが<shine>ふくらんだ。
　<weekday>の<clock>、花が<number>つ開いた。
<end>

<open>
　<clock>になると、<place>から怪しい音がする。<neighbour>は寝こみ、<neighbour>は<land>へ逃げた。
<meet>
「見に行こう」と、<how><said>。
　<tree>の下で、{elder}が{instrument}を練習していた。
<part>

<open>
　{hero}は<festival>で{instrument}を{instrument:play}ことになった。<spot>は、<neighbour>や<neighbour>でいっぱいだ。
<meet>
「ここを<place>だと思えばいい」と、<how><said>。
　<clock>、目を閉じて{instrument:played}。
<part>

<open>
　{hero}の{instrument}が鳴らない。中で、<colour><clothes>の{friend}が眠っている。
「ごめん。<land>の夢を見ていた」{friend}は<how><said>。
　{instrument:playing}みると、<tree>の枝で<bird>が鳴いた。<neighbour>も足を止めた。
<part>

<open>
　<house>のオルゴールから、知らない曲が流れた。
「<land>の曲だ。<job>の<surname>さんが、{instrument}で聞かせてくれたよ」{kin}は<how><said>。
　{hero}は<place>で{instrument:playing}みた。<tree>の下で、<neighbour>が聞いていた。
<end>

<open>
　<game>のことで、{hero}は{friend}とけんかをした。<worry>
　<clock>、<food>を<number>つ持って<place>へ向かうと、{friend}も<crop>を<number>つ抱えてくる。
「ごめんね」は同時だった。<tree>の上で<bird>が笑った。
<part>

<open>
　{hero}の組に、<land>から転校生が来た。<colour><clothes>の{friend}である。名は<pet>という。
　<food>を半分あげると、<drink>をくれた。<number>日目には、ふたりは<spot>で<game>をしていた。
「また<weekday>にね」{friend}は<how><said>。
<part>

<open>
　{friend}が<land>へ越していく。{hero}は<colour>紙に包んで、<look>{thing}を贈った。
　<clock>、<spot>から<vehicle>が出る。「{thing}を見たら思い出すよ」{friend}は<how><said>。
　<number>年たち、<land>の<tree>の種が届いた。
<end>

<open>
　今日は{hero}の誕生日だ。なのに<neighbour>も<neighbour>も、知らん顔をしている。<worry>
<meet>
「<place>まで来て」と、<how><said>。
　そこには{season:dish}と<food>と<drink>が並び、<age>のろうそくが<shine>ともっていた。
<part>

<open>
　{hero}と{friend}は<place>で<game>をした。賭けたのは<food>と<drink>である。
　<number>回やって、{friend}が<number>回勝った。審判は<neighbour>だ。
「半分あげる。<tree>の下で食べよう」{friend}は<how><said>。
<part>

<open>
　影が、{hero}を置いて逃げた。<spot>、<shop>、<place>。どこまでも追いかけた。
　影は<tree>の下で、{friend}の影と<game>をしている。
「<clock>まで待っておくれ」影は<how><said>。ふたりも<food>を<number>つ食べて待った。
<part>

<night>
　<house>で音がする。{hero}は<container>をかぶり、<neighbour>にもらった笛をにぎった。
　いたのは<colour><clothes>の{friend}だった。「<look>{thing}を探していたんだ」
　ふたりは<drink>を飲み、朝まで<land>の話をした。{thing}は、<tree>のたんすにあった。
<part>

<open>
　{friend}は、かけっこでいつもびりだった。<festival>の日も、<neighbour>と<neighbour>がもう<spot>を過ぎている。
「ゆっくり走ると、よく見えるよ」{friend}は<how><said>。
　そして<place>の<tree>の下に、{hero}の失くした{thing}を見つけた。
<part>

<open>
　<spot>まで来て、雨になった。{hero}の傘は<colour>小さな傘だ。
<meet>
「入れておくれ」と、<how><said>。
　ふたりは<shop>を過ぎ、<place>を過ぎ、<clock>までかかって帰った。礼は<food>が<number>つだった。
<part>

<open>
　<tree>の木から、<bird>のひなが落ちていた。<worry>
<meet>
「<container>をかして」と、<how><said>。
　ひなを巣に戻すと、<neighbour>が<food>をくれた。あくる年、<place>の空には、<bird>が<number>羽舞っていた。
<part>

<open>
　{hero}は<place>で、<colour>{fish}を釣った。
「放してくれたら、<land>の<festival>の話をしよう」と、{fish}は<how><said>。
　話は<clock>まで続いた。<neighbour>と<neighbour>にも、{season:dish}を食べながら聞かせてやった。
<end>

<open>
　<neighbour>の家の<tree>に、{bird}が巣をかけた。巣は<colour>リボンと<nut>でできている。
　{season:month}<date>、ひなが<number>羽かえった。<passed>。巣は空になった。<worry>
　あくる年、<land>の切手をくわえた{bird}が、{hero}の<house>をのぞいた。
<end>

<open>
　<place>で、{friend}が足を痛めていた。{hero}は<colour>布を巻き、<food>と<crop>をやった。
「お礼に、<drink>の泉を教えよう」{friend}は<how><said>。
　<tree>を<number>本数えた先に、泉があった。<neighbour>にも<neighbour>にも内緒である。
<part>

<open>
　畑の{crop}が、毎朝<number>つ減る。{hero}は<container>の陰で<clock>まで見張った。
　来たのは<colour><clothes>の{friend}だった。「<place>で、子どもが<number>匹待っています」
　<food>も<number>つ持たせた。礼に、<house>には<tree>の葉が<number>枚あった。
<part>

<night>
　<place>で、夜の学校が開かれる。生徒は<neighbour>と<neighbour>、それに{hero}だ。
「一時間目は<game>、二時間目は<land>の言葉、三時間目は<hobby>こと」先生の{friend}は<how><said>。
　給食は<food>と<drink>である。<neighbour>は居眠りをした。
<part>

<open>
「{season:month}<date>の<clock>に、雨が降るよ」{friend}は<food>を食べながら、<how><said>。
　<neighbour>も<neighbour>も笑った。けれどもその日、雨は<spot>にも<place>にも降った。
「<tree>の葉がそう言ったのさ」{friend}の<container>で、<look>{thing}が<shine>光った。
<part>

<open>
　{elder}に、種を<number>粒もらった。{hero}は<house>の前にまき、<drink>をやった。<passed>。芽は出ない。<worry>
　{season:month}<date>、<colour>花が<shine>開いた。中には<look>{thing}が一{thing:counter}。
　それを見に、<neighbour>も<neighbour>も来た。
<end>

<open>
　{crop}が<number>つ実った。<kin>にひとつ、<neighbour>にひとつ、<spot>の<surname>さんにもひとつ配った。
　すると<food>と<drink>が返ってきた。<shop>でも<nut>をくれた。
　最後の{crop}は、<place>の<bird>にやった。
<end>

<open>
　<place>に、<years>歳の<tree>がある。{hero}は耳を当てた。
「<clock>に<number>歩下がって、<surname>さんと言ってごらん」木は<how><said>。
　そのとおりにすると、<colour><nut>が、雨のように降ってきた。<neighbour>も走ってきた。
<end>

<open>
　<place>の案山子が、<colour>帽子をほしがった。{hero}は<shop>で、<price>の帽子を買ってきた。
　その晩の<clock>、戸が鳴った。外には<crop>と<nut>と、手紙があった。
「ぼうしをありがとう。<bird>と<neighbour>にほめられました<mark>」
<end>

<open>
　絵描きの{friend}は、<place>の絵をかいていたが、{colour}絵の具がない。
　{hero}は<crop>の皮と<tree>の葉を、<drink>で煮た。{colour}汁が<number>杯できた。
　絵は<festival>で、<neighbour>の絵を抜いて一等になった。
<part>

<open>
　{kin}が、<land>の菓子を教えてくれた。
「①粉を<number>杯　②<drink>を<number>杯　③<crop>を<number>つ　④<clock>まで焼く」
　できたものは、<nut>ほども固い。それでも<neighbour>は<number>つ食べた。{kin}は<reaction>。
<end>

<open>
　亡くなったおばあさんの{season:dish}には、隠し味があった。<crop>か、<drink>か。{hero}は<number>日も考えた。
「<tree>の匙で、<surname>さんの歌を歌いながらまぜたのさ」<neighbour>が<how><said>。
　歌ってまぜると、湯気が<shine>光った。
<end>

<night>
　旅の<job>が、戸をたたいた。{hero}は{season:dish}と<crop>を出し、<house>に<colour>ふとんを敷いた。
「<land>の<surname>と申します」客は<how><festival>の話をした。
　朝、客はもういない。枕もとに<look>{thing}が一{thing:counter}あった。
<end>

<open>
　<festival>の<food>が<number>つ足りない。{hero}は<shop>へ、<spot>へ、<place>へ走った。
<meet>
「うちで<tree>の葉に包んで焼いたよ」と、<how><said>。
　<neighbour>も<neighbour>も、それを一番に選んだ。
<part>

<open>
　{hero}は<look>{thing}を、<neighbour>の<food>と取りかえた。<spot>で<drink>になり、<shop>で<colour>ボタンになり、<place>で<crop>になった。
　<clock>に会った<neighbour>は、「孫の好物だ」と{hero}の手に{thing}をのせた。
<end>

<open>
　<spot>の時計が、<clock>で止まった。のぼってみると、歯車に<look>{thing}がはさまっている。
「{friend}のだよ」<neighbour>が<how><said>。{hero}は<vehicle>で<place>へ急いだ。
　時計が動きだし、{friend}は<reaction>。鐘は<number>回鳴った。
<part>

<open>
　駅の時刻表に、知らない汽車があった。「<wide><wide>番線　<clock>発　<place>行き　<price>」
　となりの席は<colour><clothes>の{friend}、前の席は<neighbour>である。
「切符は<nut>でいいよ」{friend}は<how><said>。窓の外は<tree>の林だった。
<part>

<open>
　{hero}は<vehicle>に乗り遅れた。次は<clock>である。<worry>
　待合室では、<colour><clothes>の{elder}が<drink>を飲んでいた。
「<land>で<job>をしていたころはね」{elder}は<how><said>。<number>便見送っても、話は終わらなかった。
<end>

<open>
　<place>に橋がない。{hero}と{friend}は、<tree>の木を<number>本、<vehicle>で運んだ。
<together>
　<clock>、橋ができた。まず<bird>が渡り、<neighbour>が渡り、<job>の<surname>さんが渡った。渡し賃は<food>である。
<part>

<night>
　<late>、灯台の明かりが消えた。沖には、<surname>さんの船が<number>そういる。
　{hero}は<shop>へ走り、<spot>へ走った。<neighbour>はちょうちんを、<neighbour>は<colour>ランプを持ってきた。
　<place>は、灯台より<shine>光った。
<end>

<open>
　<years>年前の<festival>の写真に、{hero}とよく似た子が写っている。
「わたしだよ」{elder}は<how><said>。「となりが<surname>さん、後ろの<tree>は今もある」
　手には<look>{thing}を持っている。その{thing}が、いま<house>にある。
<end>

<open>
　{festival}の前の日、太鼓が消えた。{hero}は<shop>と<spot>を探し、<clock>に<place>へ来た。
　太鼓の上で、{friend}の子が<number>匹、<colour>毛布をかけて眠っている。
　その年の{festival}は、<neighbour>の手拍子と<neighbour>の歌で始まった。
<part>

<open>
　床屋の椅子で眠り、<clock>に目をさますと、頭が<crop>のようになっていた。<worry>
<meet>
「<land>の<job>みたいだ」と、<how><said>。
　<passed>。<neighbour>も<neighbour>も、同じ頭で歩いている。
<part>

<open>
「おうい」と{hero}は、<place>の古井戸に呼びかけた。「<food>をおくれ」と、こだまが<how><said>。
　<food>を<number>つ、<crop>を<number>つ落とすと、<look>{thing}が上がってきた。
　<neighbour>の話では、井戸は<land>までつながっているそうだ。
<end>

<night>
　{hero}は夢の中で<vehicle>に乗り、<land>の<festival>に着いた。<neighbour>も<neighbour>もいる。
　<colour><clothes>の{friend}が、<food>を<price>で売っていた。「<land>まで、また来てね」
　目がさめると、<container>に<nut>があった。
<part>

<open>
　<colour><container>に札がついている。「<years>年たつ日まで開けるな　<job>　<surname>」
　それが今日の<clock>だった。<neighbour>も<neighbour>も集まった。
「よく待ったね。<place>の<tree>の下をほってごらん<mark>」出てきたのは、<look>{thing}だった。
<end>

<open>
　<spot>の先に、地図にない道があった。<tree>を<number>本過ぎ、<crop>の畑を過ぎる。
<meet>
「<number>つ目の角は、曲がっちゃいけない」と、<how><said>。
　もちろん曲がった。そこは<house>だった。<kin>が<food>を焼いている。
<part>

<open>
　<place>で、{hero}と{friend}はかくれんぼをした。<number>十数えたが、<tree>の陰にも<shop>にもいない。
　<neighbour>に聞き、<neighbour>に聞き、<clock>になった。<worry>
「もういいよ」声は、背中の<colour><container>から聞こえた。
<part>

<open>
　{hero}は<colour>紙で舟を折り、<nut>を乗せて<place>から流した。
　<number>日たち、舟は<crop>を乗せて戻った。「<drink>も飲みに来てください　<place>の{friend}」
　<neighbour>が道を教え、<neighbour>が<vehicle>をかしてくれた。
<part>

<open>
　{kin}が<colour>毛糸で手袋を編んだ。ところが指が<number>本ある。
<meet>
「ぴったりだ」と、<how><said>。礼は<food>と<crop>だった。
　{kin}は<reaction>。次の日から、<neighbour>と<neighbour>が注文に来た。一組、<price>である。
<part>

<open>
　{hero}の歯が、<food>をかんで抜けた。<worry>
「屋根に投げて、<job>になりたいと言うのさ」<neighbour>が<how><said>。
　歯は<tree>に当たり、<shop>の屋根ではね、<bird>がくわえて<place>へ運んだ。
<end>

<open>
　<spot>に、景色を売る店があった。
「<land>の<festival>が<price>、<place>の朝が<price>」{elder}は<how><said>。
　{hero}は<price>で、<house>で<hobby><kin>の景色を買った。窓の外に<tree>が見える。
<end>
""".strip("\n").split("\n\n")
