" Indentation of specs of cnnspec, as `cnnspec fmt` writes it.
if exists("b:did_indent")
  finish
endif
let b:did_indent = 1

setlocal indentexpr=CnnIndent(v:lnum) indentkeys=0},0),0],0\|,!^F,o,O autoindent
let b:undo_indent = "setlocal indentexpr< indentkeys< autoindent<"

if exists("*CnnIndent")
  finish
endif

function! s:code(lnum) abort
  return substitute(substitute(getline(a:lnum), '"[^"]*"', '""', 'g'), '#.*$', '', '')
endfunction

" The line with the bracket around a line, and the bracket; [0, ''] outside of brackets.
function! s:around(lnum) abort
  let closed = 0
  for lnum in range(a:lnum - 1, 1, -1)
    let text = s:code(lnum)
    for bracket in reverse(split(substitute(text, '[^][(){}]', '', 'g'), '\zs'))
      let closed += bracket =~# '[])}]' ? 1 : -1
      if closed < 0
        return [lnum, bracket]
      endif
    endfor
    if text =~# '^[^]})| \t]'  " a statement outside of brackets
      break
    endif
  endfor
  return [0, '']
endfunction

" The indentation of the statement that a line belongs to: parameters may continue on further lines.
function! s:statement(lnum) abort
  let [around, bracket] = s:around(a:lnum)
  return around == 0 || bracket ==# '{' ? indent(a:lnum) : s:statement(around)
endfunction

function! CnnIndent(lnum) abort
  let line = s:code(a:lnum)
  let [around, bracket] = s:around(a:lnum)
  if around == 0
    return line =~# '^\s*|' ? shiftwidth() : 0
  endif
  let outer = s:statement(around)
  if line =~# '^\s*[]})]'
    return outer
  elseif bracket !=# '{'
    return outer + 2 * shiftwidth()
  elseif s:code(around) =~# '\<each\>[^{]*{\s*$' && (line =~# '\S' || a:lnum - 1 > around)
    return line =~# '\S' ? max([indent(a:lnum), outer + shiftwidth()]) : -1  " the columns of a table are aligned
  endif
  return outer + shiftwidth() * (line =~# '^\s*|' ? 2 : 1)
endfunction
