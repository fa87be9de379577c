" Settings for specs of cnnspec.
if exists("b:did_ftplugin")
  finish
endif
let b:did_ftplugin = 1

setlocal comments=:# commentstring=#\ %s
setlocal expandtab shiftwidth=4 softtabstop=4 textwidth=120
setlocal formatoptions-=t formatoptions+=croql
setlocal suffixesadd=.cnn
let &l:include = '\<from\>\|\<extends\>'
setlocal define=^\\s*\\(block\\\|param\\\|let\\)\\>
let b:undo_ftplugin = "setlocal comments< commentstring< expandtab< shiftwidth< softtabstop< textwidth<"
      \ . " formatoptions< suffixesadd< include< define<"
