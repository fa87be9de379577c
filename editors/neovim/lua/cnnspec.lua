-- The language server of cnnspec: `require("cnnspec").setup()` in init.lua starts it for each spec. Neovim 0.7 or newer.
local M = {}

local clients = {}

local function root_of(path)
  local found = vim.fn.finddir(".git", vim.fn.escape(vim.fn.fnamemodify(path, ":p:h"), ", ;") .. ";")
  return vim.fn.fnamemodify(found ~= "" and vim.fn.fnamemodify(found, ":p:h:h") or path, found ~= "" and ":p" or ":p:h")
end

local function start(options, buffer)
  local root = root_of(vim.api.nvim_buf_get_name(buffer))
  local client = clients[root]
  if client == nil or vim.lsp.get_client_by_id(client) == nil then
    client = vim.lsp.start_client(vim.tbl_extend("force", {
      name = "cnnspec",
      cmd = { "cnnspec", "lsp" },
      root_dir = root,
      on_exit = function() clients[root] = nil end,
    }, options))
    clients[root] = client
  end
  if client ~= nil then
    vim.lsp.buf_attach_client(buffer, client)
  end
end

-- `options` are those of `vim.lsp.start_client`: `cmd`, `on_attach`, `capabilities`, ...
function M.setup(options)
  options = options or {}
  local group = vim.api.nvim_create_augroup("cnnspec", {})
  vim.api.nvim_create_autocmd("FileType", {
    group = group,
    pattern = "cnn",
    callback = function(event)
      if vim.bo[event.buf].buftype ~= "" then
        return
      end
      vim.bo[event.buf].omnifunc = "v:lua.vim.lsp.omnifunc"
      start(options, event.buf)
    end,
  })
end

return M
