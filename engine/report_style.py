"""The style sheet of the report page, light and dark after the reader's preference."""

STYLE = """
:root{color-scheme:light dark;--page:#f4f5f7;--card:#fff;--ink:#1b1e24;--faint:#626a78;--line:#e3e6ea;
--soft:#f0f2f5;--blue:0 114 178;--orange:213 94 0;--good:#00684b;--bad:#a84300;--warn:#fff6e0;
--p0:#0072b2;--p1:#cc79a7;--p2:#e69f00;--p3:#009e73;--p4:#56b4e9;--p5:#999}
@media (prefers-color-scheme:dark){:root{--page:#0f1115;--card:#171a21;--ink:#e6e8ec;--faint:#9aa3b2;
--line:#2c323d;--soft:#1f242d;
--blue:60 150 220;--orange:235 120 30;--good:#4cc9a0;--bad:#f29a5a;--warn:#33290f;
--p0:#3d8fc9;--p1:#d58db5;--p2:#e0a52a;--p3:#2bae8a;--p4:#7fc6ee;--p5:#8a8f99}}
*{box-sizing:border-box}
body{margin:0;background:var(--page);color:var(--ink);
font:15px/1.5 system-ui,"Segoe UI",Roboto,"DejaVu Sans",sans-serif}
main{max-width:1280px;margin:0 auto;padding:24px 20px 60px}
h1{font-size:22px;line-height:1.3;margin:0 0 6px;overflow-wrap:anywhere}
h2{font-size:17px;margin:0 0 12px}
h3{font-size:15px;margin:24px 0 4px}
h4{font-size:12.5px;font-weight:600;color:var(--faint);margin:0 0 4px}
section{background:var(--card);border:1px solid var(--line);border-radius:10px;padding:18px 20px;
margin-top:18px}
code{font:12.5px/1.4 ui-monospace,"DejaVu Sans Mono",monospace;overflow-wrap:anywhere}
.plain{list-style:none;margin:0;padding:0;color:var(--faint);font-size:13.5px}
.note,.legend{color:var(--faint);font-size:13px;margin:10px 0}
.notice{background:var(--warn);border-radius:6px;padding:7px 11px;font-size:13.5px;margin:10px 0}
.wide{overflow-x:auto}
table{border-collapse:collapse;width:100%;font-size:13.5px;font-variant-numeric:tabular-nums}
th,td{padding:6px 9px;border-bottom:1px solid var(--line);vertical-align:top}
thead th{color:var(--faint);font-weight:600;font-size:12.5px;line-height:1.25;vertical-align:bottom}
tbody th{font-weight:400}
tbody tr:hover{background:var(--soft)}
.n{text-align:right;white-space:nowrap}
thead .n{white-space:normal}
.t{text-align:left;white-space:nowrap}
.w{text-align:left;overflow-wrap:anywhere}
td small{display:block;color:var(--faint);font-size:11.5px}
.ci{display:inline-block;position:relative;width:84px;height:8px;margin-right:9px;border-radius:4px;
background:var(--soft);box-shadow:inset 0 0 0 1px var(--line)}
.ci b{position:absolute;top:0;bottom:0;border-radius:4px;background:rgb(var(--blue)/.45)}
.ci i{position:absolute;top:-2px;bottom:-2px;width:2px;margin-left:-1px;background:rgb(var(--blue))}
picture img{display:block;width:100%;height:auto}
.phases{display:flex;width:220px;height:12px;margin-top:4px;border-radius:3px;overflow:hidden;background:var(--soft)}
.phases b{display:block}
.p0{background:var(--p0)}.p1{background:var(--p1)}.p2{background:var(--p2)}
.p3{background:var(--p3)}.p4{background:var(--p4)}.p5{background:var(--p5)}
.key{background:none!important;margin-right:16px}
.key::before{content:"";display:inline-block;width:10px;height:10px;border-radius:2px;margin-right:6px}
.key.p0::before{background:var(--p0)}.key.p1::before{background:var(--p1)}.key.p2::before{background:var(--p2)}
.key.p3::before{background:var(--p3)}.key.p4::before{background:var(--p4)}.key.p5::before{background:var(--p5)}
details{margin-top:12px}
summary{cursor:pointer;color:var(--faint);font-size:13.5px}
article{border-top:1px solid var(--line);padding:14px 0 6px}
.prompt{font-weight:600;margin:0 0 8px;white-space:pre-wrap;overflow-wrap:anywhere}
.pair{display:grid;grid-template-columns:minmax(0,1fr) minmax(0,2fr);gap:22px}
.say{margin:0 0 10px;white-space:pre-wrap;overflow-wrap:anywhere}
.expert .say{border-left:3px solid var(--line);padding-left:10px}
.s{border-radius:3px;padding:1px 0;box-decoration-break:clone;-webkit-box-decoration-break:clone;
white-space:pre-wrap}
.plus{background:rgb(var(--blue)/var(--a))}
.minus{background:rgb(var(--orange)/var(--a));text-decoration:underline dashed 1px rgb(var(--orange));
text-underline-offset:3px}
.none{border-bottom:1px dotted var(--faint)}
.yes{color:var(--good)}.no{color:var(--bad)}.reward{font-weight:400}.empty{color:var(--faint)}
.response .yes,.response .no,.response .reward{margin-left:8px}
@media (max-width:760px){.pair{grid-template-columns:1fr;gap:4px}
section{padding:14px 12px}main{padding:14px 10px 40px}}
@media print{section{break-inside:auto;border:0}article{break-inside:avoid}}
"""
