-- Loaded by Neovim when it starts: the command, and the follower. `vim.g.autoforward_autostart = false` leaves the
-- follower to the first `:Ports` or to `require('autoforward').start()`.

if vim.g.loaded_autoforward then
  return
end
vim.g.loaded_autoforward = true

vim.api.nvim_create_user_command('Ports', function()
  require('autoforward').show()
end, { desc = 'forwarded ports of dev containers' })

if vim.g.autoforward_autostart ~= false then
  -- After init.lua, whose `setup` may say where the program is.
  vim.schedule(function()
    require('autoforward').start()
  end)
end
