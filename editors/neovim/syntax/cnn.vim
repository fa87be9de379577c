" Syntax of specs of cnnspec. The groups are the token types of `docs/_ext/cnn_lexer.py`, which the tests compare.
if exists("b:current_syntax")
  finish
endif

" A later rule wins over an earlier one that starts at the same place.
syntax match cnnName        /\<\h\w*/
syntax match cnnNumber      /\d\+\%(\.\d\+\)\=\%([eE][+-]\=\d\+\|[kMG]\>\|[ \t]*%\)\=/
syntax match cnnNumber      /\d\+\%(x\d\+\)\+\>/
syntax match cnnRepeat      /\<x\d\+\>/
syntax match cnnPunctuation /[{}()[\],;:]/
syntax match cnnOperator    #\.\.\|==\|!=\|<=\|>=\|//\|[-+*/%<>=|]#
syntax match cnnConstant    /\<\%(true\|false\|in\|nothing\)\>/
syntax match cnnJoin        /\<\%(add\|mul\|concat\)\>/
syntax match cnnStatement   /\<\%(network\|input\|classes\|param\|block\|default\|init\|expect\|within\|train\|use\|from\)\>/
syntax match cnnStatement   /\<\%(extends\|aux\|let\|require\|when\|repeat\|as\|each\|if\|then\|else\|or\|and\|not\|once\)\>/
syntax match cnnStage       /\<\%(stem\|stage\|head\)\>/
" A name is called where a statement or an element of a pipeline begins.
let s:reserved = '\%(\%(network\|input\|classes\|param\|block\|default\|init\|expect\|within\|train\|use\|from\|extends\|aux'
      \ . '\|let\|require\|when\|repeat\|as\|each\|if\|then\|else\|or\|and\|not\|once\|add\|mul\|concat\|stem\|stage\|head'
      \ . '\|true\|false\|in\|nothing\)\>\)'
let s:before = '\%(^\s*\|[|{;:]\s*\|\<\%(stem\|stage\|head\)\s\+\)\@80<='
execute 'syntax match cnnCall /' . s:before . s:reserved . '\@!\h\w*\>\%([0-9A-Za-z_.]*\s*:\)\@!/'
syntax match cnnStatement   /\<again\ze[ \t]\+@/
syntax match cnnAttribute   /\<\h\w*\ze==\@!/
syntax match cnnLabel       /\<\h\w*\%(\.\w\+\)*\ze\s*:/
syntax match cnnReference   /@\h\w*\%(\.\w\+\)*/
syntax match cnnDim         /\<in\.[chw]\>/
syntax match cnnStatement   /\<output\ze[ \t]\+\w\+\%(\.\w\+\)*[ \t]\+from\>/
syntax match cnnLabel       /\%(\<output[ \t]\+\)\@80<=\w\+\%(\.\w\+\)*\ze[ \t]\+from\>/
syntax match cnnLabel       /\%(\<input[ \t]\+\)\@80<=\h\w*/
syntax match cnnName        /\%(\<expect[ \t]\+\)\@80<=\h\w*\%(\.\w\+\)*/
syntax match cnnDefined     /\%(\<\%(network\|block\|use\|extends\)[ \t]\+\)\@80<=\h\w*/
syntax match cnnString      /"[^"]*"/
syntax match cnnComment     /#.*/ contains=cnnTodo,@Spell
syntax keyword cnnTodo TODO FIXME XXX contained

highlight default link cnnName        Identifier
highlight default link cnnNumber      Number
highlight default link cnnRepeat      Number
highlight default link cnnPunctuation Delimiter
highlight default link cnnOperator    Operator
highlight default link cnnConstant    Constant
highlight default link cnnJoin        Function
highlight default link cnnStatement   Statement
highlight default link cnnStage       Structure
highlight default link cnnCall        Function
highlight default link cnnAttribute   Identifier
highlight default link cnnLabel       Label
highlight default link cnnReference   Label
highlight default link cnnDim         Special
highlight default link cnnDefined     Type
highlight default link cnnString      String
highlight default link cnnComment     Comment
highlight default link cnnTodo        Todo

let b:current_syntax = "cnn"
